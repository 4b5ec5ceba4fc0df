"""Resampling of images: bicubic interpolation, space-to-depth and depth-to-space."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxai.typing import Array, Images


def space_to_depth(images: Images, size: int) -> Float[Array, "B rows columns F"]:
    """Move squares of ``size`` x ``size`` pixels to channels: [B, height, width, C] to [B, height / size, width / size,
    size^2 C]. Raises ValueError if ``size`` does not divide height and width.
    """
    B, height, width, C = images.shape
    if size < 1 or height % size or width % size:
        raise ValueError(f"fold={size} does not divide images of {height}x{width}: crop them to a multiple")
    x = images.reshape(B, height // size, size, width // size, size, C).swapaxes(2, 3)
    return x.reshape(B, height // size, width // size, -1)


def depth_to_space(maps: Float[Array, "B rows columns F"], size: int) -> Images:
    """The inverse of `space_to_depth`."""
    B, rows, columns, F = maps.shape
    x = maps.reshape(B, rows, columns, size, size, F // size**2).swapaxes(2, 3)
    return x.reshape(B, rows * size, columns * size, -1)


def pad_to_multiple(images: Images, size: int) -> Float[Array, "B rows columns C"]:
    """Pad at the bottom and right with copies of the last row and column until ``size`` divides height and width."""
    _, height, width, _ = images.shape
    return jnp.pad(images, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)), mode="edge")


def downscaled(images: Images, scale: int) -> Float[Array, "B rows columns C"]:
    """Divide height and width by ``scale``: antialiased bicubic interpolation (Keys, a = -0.5), as MATLAB's imresize.

    Raises ValueError if ``scale`` does not divide height and width.
    """
    B, height, width, C = images.shape
    if scale < 1 or height % scale or width % scale:
        raise ValueError(f"scale={scale} does not divide images of {height}x{width}: crop them to a multiple")
    return jax.image.resize(images, (B, height // scale, width // scale, C), "cubic", antialias=True)


def upscaled(images: Images, scale: int) -> Float[Array, "B rows columns C"]:
    """Multiply height and width by ``scale``, by bicubic interpolation (Keys, a = -0.5)."""
    B, height, width, C = images.shape
    return jax.image.resize(images, (B, scale * height, scale * width, C), "cubic")
