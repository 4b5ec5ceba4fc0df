"""Networks that make images from images, by convolutions on squares of pixels as channels."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import DTypeLike, Float

from jaxai.gan.networks import HE, ResidualBlock, activation
from jaxai.nn.layers import Conv
from jaxai.ops.resampling import depth_to_space, space_to_depth
from jaxai.typing import Array, Images


class Translator(nn.Module):
    """tanh(W images + f(images)): images of ``channels`` in [-1, 1], float32, from images of any.

    W is a 1x1 convolution and f that of `Restorer`; both start at zero. A CycleGAN that started
    at W = 1 was still there after 170 steps where it should invert, from zero it inverts after 50: between 1 and -1 the
    image is lost, which the cycle's loss forbids. ValueError where ``fold`` does not divide the sizes.
    """

    channels: int
    width: int = 32
    blocks: int = 2
    fold: int = 2
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "B height width {self.channels}"]:
        copy = Conv(self.channels, (1, 1), kernel_init=nn.initializers.zeros, dtype=self.dtype)(images)
        return nn.tanh((copy + changes(self, images, self.channels)).astype("float32"))


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
    x = Conv(module.width, (3, 3), kernel_init=HE, dtype=module.dtype)(space_to_depth(images, module.fold))
    for _ in range(module.blocks):
        x = ResidualBlock(dtype=module.dtype)(x)
    zeros = nn.initializers.zeros
    x = Conv(channels * module.fold**2, (3, 3), kernel_init=zeros, dtype=module.dtype)(activation(x))
    return depth_to_space(x, module.fold)
