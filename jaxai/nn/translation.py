"""A network that makes images of one kind from images of another: convolutions on folded pixels."""

from flax import linen as nn
from jaxtyping import DTypeLike, Float

from jaxai.nn.gan import HE, ResidualBlock, activation
from jaxai.nn.layers import Conv
from jaxai.nn.restoration import folded, unfolded
from jaxai.typing import Array, Images


class Translator(nn.Module):
    """Images of any channels to images of ``channels``, in [-1, 1], float32: convolution, residual blocks, convolution.

    As `jaxai.nn.restoration.Restorer` but for what is added: the images may have other channels, so that nothing of
    them is kept, and a tanh bounds the result. ValueError where ``fold`` does not divide the sizes.
    """

    channels: int
    width: int = 32
    blocks: int = 2
    fold: int = 2
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "B height width {self.channels}"]:
        x = Conv(self.width, (3, 3), kernel_init=HE, dtype=self.dtype)(folded(images, self.fold))
        for _ in range(self.blocks):
            x = ResidualBlock(dtype=self.dtype)(x)
        x = Conv(self.channels * self.fold**2, (3, 3), kernel_init=HE, dtype=self.dtype)(activation(x))
        return nn.tanh(unfolded(x, self.fold).astype("float32"))
