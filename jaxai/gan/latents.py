"""Latents of a trained generator: truncated sampling, interpolation, and inversion of given images."""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Key

from jaxai.typing import Array, Samples

Latent = Float[np.ndarray, " Z"]


def truncated(key: Key[Array, ""], count: int, size: int, limit: float) -> Float[Array, "{count} {size}"]:
    """Draw latents from the standard normal truncated to +-``limit``: less variety, fewer artefacts.

    Source: BigGAN, Brock et al. 2019, arXiv 1809.11096, section 3.1. An infinite ``limit`` means no truncation. Raises
    ValueError if it is not positive.
    """
    if not limit > 0:
        raise ValueError(f"truncation must be positive, got {limit}")
    return jax.random.truncated_normal(key, -limit, limit, (count, size))


def slerp(start: Latent, end: Latent, share: float) -> Latent:
    """Spherical linear interpolation at ``share`` of the way from start to end (White 2016, arXiv 1609.04468)."""
    cosine = np.dot(start, end) / (np.linalg.norm(start) * np.linalg.norm(end))
    angle = np.arccos(np.clip(cosine, -1, 1))
    return (np.sin((1 - share) * angle) * start + np.sin(share * angle) * end) / np.sin(angle)


def walk(ends: Float[np.ndarray, "n Z"], steps: int) -> Float[np.ndarray, "m Z"]:
    """Interpolate from each latent to the next by `slerp`, both ends included: float32 [(n - 1) * steps, Z]."""
    shares = np.linspace(0, 1, steps)
    return np.stack([slerp(a, b, share) for a, b in pairwise(ends) for share in shares]).astype(np.float32)


def invert(
    generate: Callable[[Float[Array, "B Z"]], Samples],
    examples: Samples,
    start: Float[Array, "S B Z"],
    *,
    steps: int = 500,
    learning_rate: float = 0.05,
) -> tuple[Float[Array, "B Z"], Float[Array, " B"]]:
    """Find the latents whose outputs are closest to ``examples``; return them and their mean squared errors [B].

    Minimise |G(z) - x|^2 with Adam from each of S starts and keep the best latent for each example. Source: Lipton and
    Tripathi 2017, arXiv 1702.04782. To be jitted by the caller.
    """
    tx = optax.adam(learning_rate)

    def apart(latents: Float[Array, "B Z"]) -> Float[Array, " B"]:
        return ((generate(latents) - examples) ** 2).mean(range(1, examples.ndim))

    def step(_: Array, carry: tuple[Array, optax.OptState]) -> tuple[Array, optax.OptState]:
        latents, state = carry
        updates, state = tx.update(jax.grad(lambda z: apart(z).sum())(latents), state)
        return optax.apply_updates(latents, updates), state  # pyright: ignore[reportReturnType]

    def from_one(latents: Float[Array, "B Z"]) -> tuple[Array, Array]:
        latents, _ = jax.lax.fori_loop(0, steps, step, (latents, tx.init(latents)))
        return latents, apart(latents)

    latents, left = jax.lax.map(from_one, start)
    best = left.argmin(0)
    return jnp.take_along_axis(latents, best[None, :, None], 0)[0], left.min(0)
