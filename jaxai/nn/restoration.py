"""A network that improves images: convolutions on folded pixels, and what they add."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import DTypeLike, Float

from jaxai.nn.gan import HE, ResidualBlock, activation
from jaxai.nn.layers import Conv
from jaxai.typing import Array, Images


class Restorer(nn.Module):
    """images + f(images, hints): a 3x3 convolution, residual blocks, a 3x3 convolution that starts at zero.

    Squares of ``fold`` x ``fold`` pixels are channels inside, which takes fold^-2 of the time and shows fold times as
    much of the image to a kernel; their residual blocks are EDSR's (arXiv 1707.02921). ``hints``
    [B, height, width, any], such as a mask, are seen as further channels. ValueError where ``fold`` does not divide
    the sizes.
    """

    width: int = 48
    blocks: int = 4
    fold: int = 2
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images, hints: Float[Array, "B height width D"] | None = None) -> Images:
        seen = images if hints is None else jnp.concatenate([images, hints], -1)
        return images + changes(self, seen, images.shape[-1]).astype(images.dtype)


def changes(module: Any, images: Images, channels: int) -> Float[Array, "B height width {channels}"]:
    """What a compact module with `Restorer`'s fields adds: images of ``channels``, zeros before the first step."""
    x = Conv(module.width, (3, 3), kernel_init=HE, dtype=module.dtype)(folded(images, module.fold))
    for _ in range(module.blocks):
        x = ResidualBlock(dtype=module.dtype)(x)
    zeros = nn.initializers.zeros
    x = Conv(channels * module.fold**2, (3, 3), kernel_init=zeros, dtype=module.dtype)(activation(x))
    return unfolded(x, module.fold)


def folded(images: Images, size: int) -> Float[Array, "B rows columns F"]:
    """Squares of ``size`` x ``size`` pixels as channels (space to depth). ValueError where they don't fit."""
    B, height, width, C = images.shape
    if size < 1 or height % size or width % size:
        raise ValueError(f"fold={size} does not divide images of {height}x{width}: crop them to a multiple")
    x = images.reshape(B, height // size, size, width // size, size, C).swapaxes(2, 3)
    return x.reshape(B, height // size, width // size, -1)


def unfolded(maps: Float[Array, "B rows columns F"], size: int) -> Images:
    """The inverse of `folded` (depth to space)."""
    B, rows, columns, F = maps.shape
    x = maps.reshape(B, rows, columns, size, size, F // size**2).swapaxes(2, 3)
    return x.reshape(B, rows * size, columns * size, -1)
