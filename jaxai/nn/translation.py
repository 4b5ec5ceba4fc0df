"""A network that makes images of one kind from images of another: convolutions on folded pixels."""

from flax import linen as nn
from jaxtyping import DTypeLike, Float

from jaxai.nn.layers import Conv
from jaxai.nn.restoration import changes
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
        copy = Conv(self.channels, (1, 1), kernel_init=nn.initializers.zeros, dtype=self.dtype)(images)
        return nn.tanh((copy + changes(self, images, self.channels)).astype("float32"))
