"""A network that makes images of one kind from images of another: convolutions on folded pixels."""

from flax import linen as nn
from jaxtyping import DTypeLike, Float

from jaxai.nn.gan import HE, ResidualBlock, activation
from jaxai.nn.layers import Conv
from jaxai.nn.restoration import folded, unfolded
from jaxai.typing import Array, Images


class Translator(nn.Module):
    """tanh(W images + f(images)): images of ``channels`` in [-1, 1], float32, from images of any.

    W is a 1x1 convolution and f that of `jaxai.nn.restoration.Restorer`; both start at zero. A CycleGAN that started
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
        zeros = nn.initializers.zeros
        copy = Conv(self.channels, (1, 1), kernel_init=zeros, dtype=self.dtype)(images)
        x = Conv(self.width, (3, 3), kernel_init=HE, dtype=self.dtype)(folded(images, self.fold))
        for _ in range(self.blocks):
            x = ResidualBlock(dtype=self.dtype)(x)
        x = Conv(self.channels * self.fold**2, (3, 3), kernel_init=zeros, dtype=self.dtype)(activation(x))
        return nn.tanh((copy + unfolded(x, self.fold)).astype("float32"))
