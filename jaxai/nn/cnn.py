"""Image classifiers as thin Linen modules: NHWC images in, one logit a class out."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from jaxai.nn.layers import Conv
from jaxai.ops.conv import conv
from jaxai.ops.pool import max_pool
from jaxai.typing import Images

Logits = Float[Array, "B classes"]
Maps = Float[Array, "B map_height map_width F"]

GLOROT = nn.initializers.glorot_uniform()


class ArticleCNN(nn.Module):
    """The article's classifier: 3x3 valid convolutions with ReLU, 2x2 max pooling between them, a dense layer, logits.

    32x32x3 images and 10 classes make 122,570 parameters, drawn as Keras draws them: Glorot-uniform kernels (Glorot and
    Bengio 2010), zero biases. The pixels that pooling leaves over at the right and at the bottom are never computed.
    """

    channels: Sequence[int] = (32, 64, 64)
    hidden: int = 64
    classes: int = 10

    def setup(self) -> None:
        *pooled, last = self.channels
        self.conv = [*map(PooledConv, pooled), Conv(last, (3, 3), padding="VALID", kernel_init=GLOROT)]
        self.dense = [nn.Dense(features, kernel_init=GLOROT) for features in (self.hidden, self.classes)]

    def __call__(self, images: Images) -> Logits:
        return self.head(self.features(images))

    def features(self, images: Images) -> Maps:
        """The last convolution's maps."""
        height, width = (used_pixels(size, len(self.channels)) for size in images.shape[1:3])
        x = images[:, :height, :width]
        for layer in self.conv:
            x = nn.relu(layer(x))
        return x

    def head(self, features: Maps) -> Logits:
        """The logits of those maps."""
        x = nn.relu(self.dense[0](features.reshape(len(features), -1)))
        return self.dense[1](x)


class PooledConv(nn.Module):
    """Valid 3x3 convolution and 2x2 max pooling; kernel [3, 3, C, features] and bias [features], as in `Conv`.

    The bias is added after the pooling, max(a + b) = max(a) + b, to a quarter of the pixels.
    """

    features: int

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        kernel = self.param("kernel", GLOROT, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return max_pool(conv(x, kernel, padding="VALID"), 2, strides=2) + bias.reshape(1, 1, 1, -1)


def used_pixels(size: int, layers: int) -> int:
    """How many of ``size`` pixels reach the last of so many valid 3x3 convolutions with 2x2 pooling between them."""
    for _ in range(layers - 1):
        size = (size - 2) // 2
    for _ in range(layers - 1):
        size = 2 * size + 2
    return size
