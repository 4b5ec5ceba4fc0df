"""Augmentations that real and generated images go through alike, differentiable to any order, and their strength.

A discriminator that sees few images learns them by heart; augmented it can't, and since the generator's gradient runs
through the same augmentations, what it draws has none of them. Images are float [B, H, W, C] in [-1, 1].
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float, Key

from jaxai.typing import Array, Images

Policy = Literal["brightness", "saturation", "contrast", "translation", "cutout"]
POLICIES: tuple[Policy, ...] = ("brightness", "saturation", "contrast", "translation", "cutout")


def augment(
    images: Images, key: Key[Array, ""], policies: Sequence[str], strength: ArrayLike = 1.0, *, fill: float = 0.0
) -> Images:
    """Each image through each of ``policies`` with probability ``strength``, by draws of its own.

    brightness: + u - 1/2; saturation: distance from the pixel's mean over channels times 2 u; contrast: distance from
    the image's mean times u + 1/2; translation: up to 1/8 of height and width; cutout: a square of half the height and
    width around a random pixel; u uniform in [0, 1). What comes in from outside, and the square, is ``fill``.

    Source: Zhao et al. 2020, arXiv 2006.10738 (DiffAugment, strength 1), there with ``fill`` 0. ValueError for an
    unknown policy, and for saturation of images without colour.
    """
    for name in policies:
        if name not in POLICIES:
            raise ValueError(f"policies has {name!r}: there are {', '.join(POLICIES)}")
    if "saturation" in policies and images.shape[-1] != 3:
        raise ValueError(f"saturation needs three channels, not those of images {images.shape}: leave it out")
    for name, key_policy in zip(policies, jax.random.split(key, len(policies)), strict=True):
        key_chance, key_draw = jax.random.split(key_policy)
        chosen = jax.random.uniform(key_chance, (len(images), 1, 1, 1)) < strength
        images = jnp.where(chosen, transformed(name, images, key_draw, fill), images)
    return images


def transformed(name: str, images: Images, key: Key[Array, ""], fill: float) -> Images:
    """Each image through one policy."""
    count, height, width, _ = images.shape
    u = jax.random.uniform(key, (count, 1, 1, 1), images.dtype)
    if name == "brightness":
        return images + u - 0.5
    if name == "saturation":
        mean = images.mean(3, keepdims=True)
        return mean + 2 * u * (images - mean)
    if name == "contrast":
        mean = images.mean((1, 2, 3), keepdims=True)
        return mean + (u + 0.5) * (images - mean)
    rows, columns = jax.random.split(key)
    if name == "translation":
        down, right = (shifts(k, count, size).astype(images.dtype) for k, size in ((rows, height), (columns, width)))
        exact = jax.lax.Precision.HIGHEST  # pixels move, they are not to be rounded
        return fill + jnp.einsum("BYH,BXW,BHWC->BYXC", down, right, images - fill, precision=exact)
    hole = band(rows, count, height)[:, :, None] & band(columns, count, width)[:, None]
    return jnp.where(hole[..., None], jnp.asarray(fill, images.dtype), images)


def shifts(key: Key[Array, ""], count: int, size: int) -> Bool[Array, "{count} {size} {size}"]:
    """Matrices that move a line of pixels by up to an eighth of its length, zeros coming in.

    A product instead of a gather: its derivatives are products too, where those of a gather are slow scatters.
    """
    most = max(1, round(size / 8))
    by = jax.random.randint(key, (count, 1, 1), -most, most + 1)
    places = jnp.arange(size)
    return places[None, None] == places[None, :, None] - by


def band(key: Key[Array, ""], count: int, size: int) -> Array:
    """Which of ``size`` pixels lie in the half of them around a random one: bool [count, size]."""
    first = jax.random.randint(key, (count, 1), 0, size) - size // 4
    places = jnp.arange(size)[None]
    return (places >= first) & (places < first + size // 2)


def adapted(
    strength: Float[Array, ""], margins: Float[Array, " B"], seen: int, *, target: float = 0.6, images: float = 500_000
) -> Float[Array, ""]:
    """The strength after a batch of ``seen`` real images: up where the discriminator is too sure of them, else down.

    strength + sign(mean sign(m) - target) * seen / images, kept in [0, 1], with the ``margins`` m of the loss, which
    are positive where a real image is taken for real: it goes from 0 to 1 in ``images`` at the fastest. Source: Karras
    et al. 2020, arXiv 2006.06676 (adaptive discriminator augmentation), there after every fourth batch.
    """
    sure = jnp.sign(margins).mean()
    return jnp.clip(strength + jnp.sign(sure - target) * seen / images, 0, 1)
