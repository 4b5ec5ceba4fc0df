"""Differentiable augmentations of real and generated images, and the adaptation of their probability.

With few training images the discriminator memorises them; augmenting its input prevents that. The generator's gradient
passes through the same augmentations, so they do not leak into its images. Images are float [B, H, W, C] in [-1, 1].
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
    """Apply each of ``policies`` to each image with probability ``strength``, drawn independently per image.

    With u uniform in [0, 1): brightness adds u - 1/2; saturation scales the deviation from each pixel's channel mean by
    2 u; contrast scales the deviation from the image's mean by u + 1/2; translation shifts by up to 1/8 of height and
    width; cutout blanks a rectangle of half the height and width around a random pixel. Shifted-in pixels and the
    rectangle are set to ``fill``.

    Source: Zhao et al. 2020, arXiv 2006.10738 (DiffAugment; strength 1, ``fill`` 0). Raises ValueError for an unknown
    policy, and for saturation unless the images have three channels.
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
    """Apply one policy to every image."""
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
        exact = jax.lax.Precision.HIGHEST  # translated pixels keep their exact values
        return fill + jnp.einsum("BYH,BXW,BHWC->BYXC", down, right, images - fill, precision=exact)
    hole = band(rows, count, height)[:, :, None] & band(columns, count, width)[:, None]
    return jnp.where(hole[..., None], jnp.asarray(fill, images.dtype), images)


def shifts(key: Key[Array, ""], count: int, size: int) -> Bool[Array, "{count} {size} {size}"]:
    """Matrices that shift a row of pixels by up to an eighth of its length and fill with zeros.

    A matrix product instead of a gather: its derivatives are products too, those of a gather are slow scatters.
    """
    most = max(1, round(size / 8))
    by = jax.random.randint(key, (count, 1, 1), -most, most + 1)
    places = jnp.arange(size)
    return places[None, None] == places[None, :, None] - by


def band(key: Key[Array, ""], count: int, size: int) -> Array:
    """Mask of a random band, half as long as the ``size`` pixels: bool [count, size]."""
    first = jax.random.randint(key, (count, 1), 0, size) - size // 4
    places = jnp.arange(size)[None]
    return (places >= first) & (places < first + size // 2)


def adapted(
    strength: Float[Array, ""], margins: Float[Array, " B"], seen: int, *, target: float = 0.6, images: float = 500_000
) -> Float[Array, ""]:
    """The strength after a batch of ``seen`` real images: raised if the discriminator overfits, else lowered.

    strength + sign(mean sign(m) - target) * seen / images, clipped to [0, 1]. The loss's ``margins`` m are positive for
    real images classified as real; moving the strength from 0 to 1 takes at least ``images`` images. Source: Karras
    et al. 2020, arXiv 2006.06676 (adaptive discriminator augmentation, which updates every fourth batch).
    """
    sure = jnp.sign(margins).mean()
    return jnp.clip(strength + jnp.sign(sure - target) * seen / images, 0, 1)
