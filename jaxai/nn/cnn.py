"""Image classifiers as thin Linen modules: NHWC images in, one logit a class out."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from jaxai.nn.layers import Conv
from jaxai.ops.pool import max_pool
from jaxai.typing import Images

Logits = Float[Array, "B classes"]
Maps = Float[Array, "B map_height map_width F"]


class ArticleCNN(nn.Module):
    """The article's classifier: 3x3 valid convolutions with ReLU, 2x2 max pooling between them, a dense layer, logits.

    32x32x3 images and 10 classes make 122,570 parameters, drawn as Keras draws them: Glorot-uniform kernels (Glorot and
    Bengio 2010), zero biases.
    """

    channels: Sequence[int] = (32, 64, 64)
    hidden: int = 64
    classes: int = 10

    def setup(self) -> None:
        kernel_init = nn.initializers.glorot_uniform()
        self.conv = [Conv(features, (3, 3), padding="VALID", kernel_init=kernel_init) for features in self.channels]
        self.dense = [nn.Dense(features, kernel_init=kernel_init) for features in (self.hidden, self.classes)]

    def __call__(self, images: Images) -> Logits:
        return self.head(self.features(images))

    def features(self, images: Images) -> Maps:
        """The last convolution's maps."""
        x = images
        for layer, conv in enumerate(self.conv):
            x = max_pool(x, 2, strides=2) if layer else x
            x = nn.relu(conv(x))
        return x

    def head(self, features: Maps) -> Logits:
        """The logits of those maps."""
        x = nn.relu(self.dense[0](features.reshape(len(features), -1)))
        return self.dense[1](x)
