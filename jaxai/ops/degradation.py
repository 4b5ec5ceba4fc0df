"""Degradations for image restoration: pure functions on images [B, height, width, C] in [-1, 1]."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxai.ops.resampling import downscaled, upscaled
from jaxai.typing import Array, Images

Mask = Float[Array, "B height width 1"]
RestorationTask = Literal["inpainting", "denoising", "super_resolution", "contrast"]


def degrade(
    images: Images, key: Key[Array, ""], *, task: RestorationTask, sigma: float, scale: int
) -> tuple[Images, Mask | None]:
    """Degrade images for ``task``; return them at the same size and, for inpainting, the mask of the holes, else None.

    ``sigma`` is the noise of denoising; for super-resolution, images are downscaled by ``scale`` and upscaled again.
    """
    if task == "inpainting":
        return holes(images, key)
    if task == "denoising":
        return noisy(images, key, sigma), None
    if task == "contrast":
        return low_contrast(images, key), None
    return upscaled(downscaled(images, scale), scale), None


def holes(images: Images, key: Key[Array, ""], least: float = 0.25, most: float = 0.5) -> tuple[Images, Mask]:
    """Set a random rectangle of each image to zero; return the images and the mask, 1 in the hole, else 0.

    Its sides are uniform between ``least`` and ``most`` of the image's, its position is uniform inside the image.
    """
    B, height, width, _ = images.shape
    keys = jax.random.split(key, 4)
    inside = []
    for size, key_side, key_place in ((height, keys[0], keys[1]), (width, keys[2], keys[3])):
        side = jnp.round(size * jax.random.uniform(key_side, (B, 1), minval=least, maxval=most))
        first = jnp.floor(jax.random.uniform(key_place, (B, 1)) * (size - side + 1))
        place = jnp.arange(size)[None]
        inside.append((place >= first) & (place < first + side))
    mask = (inside[0][:, :, None] & inside[1][:, None, :])[..., None].astype(images.dtype)
    return images * (1 - mask), mask


def noisy(images: Images, key: Key[Array, ""], sigma: float) -> Images:
    """images + sigma u, u standard normal, not clipped."""
    return images + sigma * jax.random.normal(key, images.shape, images.dtype)


def low_contrast(images: Images, key: Key[Array, ""], least: float = 0.2, most: float = 0.6) -> Images:
    """share images + shift, drawn per image: share uniform in [least, most], shift in +-(1 - share)."""
    key_share, key_shift = jax.random.split(key)
    size = (len(images), 1, 1, 1)
    share = jax.random.uniform(key_share, size, images.dtype, least, most)
    return share * images + jax.random.uniform(key_shift, size, images.dtype, -1, 1) * (1 - share)
