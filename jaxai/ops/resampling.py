"""Resampling of images: bicubic interpolation, and squares of pixels as channels."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxai.typing import Array, Images


def space_to_depth(images: Images, size: int) -> Float[Array, "B rows columns F"]:
    """Squares of ``size`` x ``size`` pixels as channels (space to depth). ValueError where they don't fit."""
    B, height, width, C = images.shape
    if size < 1 or height % size or width % size:
        raise ValueError(f"fold={size} does not divide images of {height}x{width}: crop them to a multiple")
    x = images.reshape(B, height // size, size, width // size, size, C).swapaxes(2, 3)
    return x.reshape(B, height // size, width // size, -1)


def depth_to_space(maps: Float[Array, "B rows columns F"], size: int) -> Images:
    """The inverse of `space_to_depth` (depth to space)."""
    B, rows, columns, F = maps.shape
    x = maps.reshape(B, rows, columns, size, size, F // size**2).swapaxes(2, 3)
    return x.reshape(B, rows * size, columns * size, -1)


def pad_to_multiple(images: Images, size: int) -> Float[Array, "B rows columns C"]:
    """Repeat the last row and the last column until ``size`` divides height and width."""
    _, height, width, _ = images.shape
    return jnp.pad(images, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)), mode="edge")


def downscaled(images: Images, scale: int) -> Float[Array, "B rows columns C"]:
    """Every ``scale`` pixels one, by bicubic interpolation (Keys, a = -0.5) with antialiasing, as MATLAB's imresize.

    ValueError where ``scale`` does not divide the sizes.
    """
    B, height, width, C = images.shape
    if scale < 1 or height % scale or width % scale:
        raise ValueError(f"scale={scale} does not divide images of {height}x{width}: crop them to a multiple")
    return jax.image.resize(images, (B, height // scale, width // scale, C), "cubic", antialias=True)


def upscaled(images: Images, scale: int) -> Float[Array, "B rows columns C"]:
    """Every pixel ``scale`` pixels wide and high, by bicubic interpolation (Keys, a = -0.5)."""
    B, height, width, C = images.shape
    return jax.image.resize(images, (B, scale * height, scale * width, C), "cubic")
