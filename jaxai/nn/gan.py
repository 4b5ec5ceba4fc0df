"""Generators and discriminators as thin Linen modules. Images are NHWC in [-1, 1], logits one per image."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float

from jaxai.nn.layers import Conv, ConvTranspose
from jaxai.nn.mlp import MLP
from jaxai.ops.deviation import minibatch_deviation
from jaxai.typing import Images

Latents = Float[Array, "B latent"]
Logits = Float[Array, " B"]


class ArticleGenerator(nn.Module):
    """Noise, dense layers with ReLU, a dense 7x7 map, two transposed convolutions, a convolution with tanh."""

    hidden: Sequence[int] = (128, 256, 512)
    channels: Sequence[int] = (128, 64)

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        x = latents
        for features in self.hidden:
            x = nn.relu(nn.Dense(features)(x))
        x = nn.Dense(7 * 7 * self.channels[0])(x).reshape(-1, 7, 7, self.channels[0])
        for features in self.channels:
            x = ConvTranspose(features, (4, 4), strides=(2, 2))(x)
        return jnp.tanh(Conv(1, (3, 3))(x))


class ArticleDiscriminator(nn.Module):
    """Two convolutions with LeakyReLU 0.01, flatten, a dense layer of sigmoids, one logit."""

    channels: Sequence[int] = (32, 64)
    hidden: int = 128

    @nn.compact
    def __call__(self, images: Images) -> Logits:
        x = images
        for features in self.channels:
            x = nn.leaky_relu(Conv(features, (3, 3))(x), 0.01)
        x = nn.sigmoid(nn.Dense(self.hidden)(x.reshape(len(x), -1)))
        return nn.Dense(1)(x)[:, 0]


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))), both 3x3; the last convolution starts at zero (fix-up, arXiv 1901.09321)."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B height width F"]) -> Float[Array, "B height width F"]:
        features = x.shape[-1]
        y = Conv(features, (3, 3), kernel_init=HE, dtype=self.dtype)(activation(x))
        y = Conv(features, (3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype)(activation(y))
        return x + y


class Generator(nn.Module):
    """Two dense layers to the lowest resolution; per width residual blocks and a 4x4 stride-2 transposed convolution.

    No normalisation, as in R3GAN (arXiv 2501.05441); but a tanh, since most pixels of a digit are exactly -1.
    ``widths`` (128, 64) makes 28x28 images from 7x7x128 by way of 14x14x64. Returns float32.
    """

    widths: Sequence[int]
    hidden: int = 512
    blocks: int = 0
    image_shape: tuple[int, int, int] = (28, 28, 1)
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        height, width = (size // 2 ** len(self.widths) for size in self.image_shape[:2])
        x = activation(nn.Dense(self.hidden, kernel_init=HE, dtype=self.dtype)(latents))
        x = nn.Dense(height * width * self.widths[0], kernel_init=HE, dtype=self.dtype)(x)
        x = x.reshape(-1, height, width, self.widths[0])
        for features in [*self.widths[1:], self.image_shape[2]]:
            for _ in range(self.blocks):
                x = ResidualBlock(dtype=self.dtype)(x)
            x = ConvTranspose(features, (4, 4), strides=(2, 2), kernel_init=HE, dtype=self.dtype)(activation(x))
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """The generator's mirror: per width a 4x4 stride-2 convolution and residual blocks; dense; one float32 logit."""

    widths: Sequence[int]
    hidden: int = 512
    blocks: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images) -> Logits:
        x = images
        for index, features in enumerate(reversed(self.widths)):
            x = activation(x) if index else x
            x = Conv(features, (4, 4), strides=(2, 2), kernel_init=HE, dtype=self.dtype)(x)
            for _ in range(self.blocks):
                x = ResidualBlock(dtype=self.dtype)(x)
        x = activation(x).reshape(len(x), -1)
        x = activation(nn.Dense(self.hidden, kernel_init=HE, dtype=self.dtype)(x))
        return nn.Dense(1, dtype=jnp.float32)(x)[:, 0]  # logits are subtracted: no bfloat16


class PointDiscriminator(nn.Module):
    """Points [B, features] to logits: a multilayer perceptron, with `minibatch_deviation` before the last layer or not.

    Without hidden sizes it is one linear layer.
    """

    hidden: Sequence[int]
    deviation: bool = False

    @nn.compact
    def __call__(self, points: Float[Array, "B features"]) -> Logits:
        x = points
        if self.hidden:
            x = activation(MLP(self.hidden[:-1], self.hidden[-1], activation, name="hidden")(x))
        x = minibatch_deviation(x) if self.deviation else x
        return MLP((), 1, name="logit")(x)[:, 0]


HE = nn.initializers.he_normal()


def activation(x: Array) -> Array:
    """Leaky ReLU with slope 0.2."""
    return jax.nn.leaky_relu(x, 0.2)
