"""Regularizers against collapse and oscillation: pure functions on examples, kernels and parameters.

Two others are elsewhere: two learning rates (arXiv 1706.08500) are a pair of optimisers in `jaxai.gan.state`, the
generator's moving average (arXiv 1806.04498) is in `jaxai.train.ema`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float, Key

from jaxai.typing import Array, PyTree, Samples


def instance_noise(x: Samples, key: Key[Array, ""], sigma: ArrayLike) -> Samples:
    """x + sigma u, u standard normal, for both real and generated examples [B, ...].

    The noise makes the two distributions overlap. Source: Sonderby et al. 2017, arXiv 1610.04490.
    """
    return x + sigma * jax.random.normal(key, x.shape, x.dtype)


def pack(x: Samples, size: int) -> Float[Array, "B//{size} *packed"]:
    """Concatenate every ``size`` examples along the channels: [B, ..., C] to [B / size, ..., size C].

    A discriminator that sees several examples at once detects a lack of variety. Source: Lin et al. 2018, arXiv
    1712.04086 (PacGAN). Raises ValueError if ``size`` does not divide B.
    """
    if size < 1 or len(x) % size:
        raise ValueError(f"pack={size} for a batch of {len(x)}: give a divisor of it")
    return jnp.moveaxis(x.reshape(-1, size, *x.shape[1:]), 1, -2).reshape(len(x) // size, *x.shape[1:-1], -1)


def spectral_norm(kernel: Float[Array, "*inputs O"], iterations: int = 20) -> Float[Array, "*inputs O"]:
    """kernel / sigma, sigma the largest singular value of the kernel as a matrix [inputs, outputs].

    Each call runs power iteration from a fixed random vector, so there is no state to keep; no gradient flows through
    the singular vectors. If the largest singular values are close, sigma is underestimated by a few per cent. A zero
    kernel is returned unchanged. Source: Miyato et al. 2018, arXiv 1802.05957, algorithm 1.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    u, v = fixed[:, 0], jax.random.normal(jax.random.key(0), matrix.shape[-1:], matrix.dtype)
    for _ in range(iterations):
        u = unit(fixed @ v)
        v = unit(u @ fixed)
    sigma = u @ matrix @ v
    return jnp.where(sigma > 1e-6, kernel / jnp.where(sigma > 1e-6, sigma, 1), kernel)


def unit(x: Float[Array, " _"]) -> Float[Array, " _"]:
    """The vector divided by its norm."""
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def spectrally_normalised(params: PyTree) -> PyTree:
    """Apply `spectral_norm` to all kernels in a network's parameters: leaves whose name begins with ``kernel``."""

    def normalised(path: tuple[Any, ...], leaf: Array) -> Array:
        return spectral_norm(leaf) if path[-1].key.startswith("kernel") else leaf

    return jax.tree_util.tree_map_with_path(normalised, params)


def unrolled(gradient: Callable[[PyTree], PyTree], params: PyTree, steps: int, rate: float) -> PyTree:
    """The discriminator's parameters after ``steps`` of gradient descent, differentiable through the steps.

    A generator loss on them accounts for the discriminator's response (Metz et al. 2017, arXiv 1611.02163).
    """
    for _ in range(steps):
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient(params))
    return params


INTERLEAVED = 2  # real and generated examples alternate: `jaxai.gan.penalties.pairs`


def minibatch_stddev(x: Float[Array, "B *space C"], group: int = 4) -> Float[Array, "B *space C+1"]:
    """x with one more channel: the diversity of the example's group, a constant per group.

    It is each feature's standard deviation over the group, averaged over all features. A group has ``group`` examples,
    fewer in a small batch, and only real or only generated ones: every second example, since the two alternate. Source:
    Karras et al. 2018, arXiv 1710.10196, section 3, with StyleGAN2's groups. Raises ValueError if the batch can't be
    split into such groups.

    >>> x = minibatch_stddev(jnp.array([[1.0], [5.0], [3.0], [5.0]]), group=2)
    >>> [[round(value, 3) for value in row] for row in x.tolist()]
    [[1.0, 1.0], [5.0, 0.0], [3.0, 1.0], [5.0, 0.0]]
    """
    batch = len(x)
    if group < 1:
        raise ValueError(f"group={group}: give at least 1")
    group = min(group, max(1, batch // INTERLEAVED))
    if batch % (INTERLEAVED * group):
        raise ValueError(f"group={group} for a batch of {batch}: the batch must be a multiple of {INTERLEAVED * group}")
    groups = x.reshape(-1, group, INTERLEAVED, x[0].size)
    variance = ((groups - groups.mean(1, keepdims=True)) ** 2).mean(1)
    deviation = jnp.sqrt(variance + 1e-8).mean(-1)  # [groups, 2]; 1e-8 keeps the derivative at 0 finite
    deviation = jnp.repeat(deviation[:, None], group, 1).reshape(batch, *(1,) * (x.ndim - 1))
    return jnp.concatenate([x, jnp.broadcast_to(deviation, (*x.shape[:-1], 1))], -1)
