"""Scaling of pixels between uint8 and floats."""

import jax.numpy as jnp
from jaxtyping import Float

from jaxai.typing import Array, Images, Pixels


def to_unit(images: Pixels) -> Float[Array, "B height width C"]:
    """x / 255: uint8 [B, height, width, C] to float32 in [0, 1]. Raises ValueError for other dtypes."""
    return _floats(images) / 255


def to_signed(images: Pixels) -> Images:
    """x / 127.5 - 1: uint8 [B, height, width, C] to float32 in [-1, 1]. Raises ValueError for other dtypes."""
    return _floats(images) / 127.5 - 1


def _floats(images: Pixels) -> Float[Array, "B height width C"]:
    if images.dtype != jnp.uint8:
        raise ValueError(f"images: {images.dtype}, give uint8, 0 to 255")
    return jnp.asarray(images).astype(jnp.float32)
