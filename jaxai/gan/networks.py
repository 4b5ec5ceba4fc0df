"""Generators, discriminators and image-to-image networks. Images are NHWC in [-1, 1]; one logit per image."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, DTypeLike, Float, Int

from jaxai.attention import dot_product_attention
from jaxai.gan.regularizers import minibatch_stddev
from jaxai.nn.layers import Conv, ConvTranspose, Dense
from jaxai.nn.mlp import MLP
from jaxai.ops.resampling import depth_to_space, space_to_depth
from jaxai.typing import Images, PyTree

Latents = Float[Array, "B latent"]
Logits = Float[Array, " B"]
Labels = Int[Array, " B"] | None


class ArticleGenerator(nn.Module):
    """The Keras baseline's generator: dense layers with ReLU, two transposed convolutions, a convolution with tanh."""

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
    """The Keras baseline's discriminator: two convolutions with LeakyReLU 0.01, a dense layer with sigmoid, a logit."""

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
    """x + conv(act(conv(act(x)))), both 3x3; the last kernel is initialised to zero (Fixup, arXiv 1901.09321)."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B height width F"]) -> Float[Array, "B height width F"]:
        features = x.shape[-1]
        y = Conv(features, (3, 3), kernel_init=HE, dtype=self.dtype)(activation(x))
        y = Conv(features, (3, 3), kernel_init=nn.initializers.zeros, dtype=self.dtype)(activation(y))
        return x + y


class AttentionBlock(nn.Module):
    """x + W attention(x): self-attention over all pixels, with one head of half the channels.

    W is initialised to zero, so the block starts as the identity. Source: SAGAN, arXiv 1805.08318, equation 3.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B height width F"]) -> Float[Array, "B height width F"]:
        tokens = x.reshape(len(x), -1, 1, x.shape[-1])
        heads = Dense(3 * (x.shape[-1] // 2), use_bias=False, dtype=self.dtype)(tokens)
        y = dot_product_attention(*jnp.split(heads, 3, -1))
        return x + Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype)(y).reshape(x.shape)


def embedded(labels: Labels, classes: int, features: int) -> Float[Array, "B {features}"] | None:
    """A learned vector for each label, or None without labels and classes; to be called in a compact module.

    Raises ValueError for labels without classes, or classes without labels.
    """
    if (labels is None) != (classes == 0):
        raise ValueError(f"labels need classes and classes labels, got classes={classes}: give both, or neither")
    return None if labels is None else nn.Embed(classes, features, name="label")(labels)


def with_latents(latents: Latents, label: Float[Array, "B features"] | None) -> Float[Array, "B inputs"]:
    """A generator's input: the latents, concatenated with the label's vector if there is one."""
    return latents if label is None else jnp.concatenate([latents, label], -1)


def projected(logits: Logits, features: Float[Array, "B F"], label: Float[Array, "B F"] | None) -> Logits:
    """Logits + <label, features>: the projection discriminator (Miyato and Koyama 2018, arXiv 1802.05637)."""
    return logits if label is None else logits + (label * features).sum(-1)


class Generator(nn.Module):
    """Two dense layers to the lowest resolution; per width residual blocks and a 4x4 stride-2 transposed convolution.

    No normalisation, as in R3GAN (arXiv 2501.05441), but a final tanh, since most pixels of a digit are exactly -1.
    ``widths`` (128, 64) maps 7x7x128 to 14x14x64 to 28x28 images. ``attention`` adds an `AttentionBlock` before the
    last upsampling; ``classes`` adds an embedding of the label to the input. Returns float32.
    """

    widths: Sequence[int]
    hidden: int = 512
    blocks: int = 0
    image_shape: tuple[int, int, int] = (28, 28, 1)
    attention: bool = False
    classes: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, latents: Latents, labels: Labels = None) -> Images:
        height, width = (size // 2 ** len(self.widths) for size in self.image_shape[:2])
        x = with_latents(latents, embedded(labels, self.classes, latents.shape[-1]))
        x = activation(nn.Dense(self.hidden, kernel_init=HE, dtype=self.dtype)(x))
        x = nn.Dense(height * width * self.widths[0], kernel_init=HE, dtype=self.dtype)(x)
        x = x.reshape(-1, height, width, self.widths[0])
        for left, features in enumerate([*self.widths[1:], self.image_shape[2]], 1 - len(self.widths)):
            for _ in range(self.blocks):
                x = ResidualBlock(dtype=self.dtype)(x)
            x = AttentionBlock(dtype=self.dtype)(x) if self.attention and left == 0 else x
            x = ConvTranspose(features, (4, 4), strides=(2, 2), kernel_init=HE, dtype=self.dtype)(activation(x))
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """The mirrored generator: per width a 4x4 stride-2 convolution and residual blocks; dense; one float32 logit.

    ``attention`` adds an `AttentionBlock` after the first downsampling.
    """

    widths: Sequence[int]
    hidden: int = 512
    blocks: int = 0
    attention: bool = False
    classes: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images, labels: Labels = None) -> Logits:
        x = images
        for index, features in enumerate(reversed(self.widths)):
            x = activation(x) if index else x
            x = Conv(features, (4, 4), strides=(2, 2), kernel_init=HE, dtype=self.dtype)(x)
            x = AttentionBlock(dtype=self.dtype)(x) if self.attention and not index else x
            for _ in range(self.blocks):
                x = ResidualBlock(dtype=self.dtype)(x)
        x = activation(x).reshape(len(x), -1)
        x = activation(nn.Dense(self.hidden, kernel_init=HE, dtype=self.dtype)(x))
        logits = nn.Dense(1, dtype=jnp.promote_types(x.dtype, "float32"))(x)[:, 0]  # losses subtract it
        return projected(logits, x, embedded(labels, self.classes, self.hidden))


class PointDiscriminator(nn.Module):
    """A multilayer perceptron from points [B, features] to logits, optionally with `minibatch_stddev` before the last
    layer. Without hidden sizes it is one linear layer.
    """

    hidden: Sequence[int]
    minibatch_stddev: bool = False

    @nn.compact
    def __call__(self, points: Float[Array, "B features"]) -> Logits:
        x = points
        if self.hidden:
            x = activation(MLP(self.hidden[:-1], self.hidden[-1], activation, name="hidden")(x))
        x = minibatch_stddev(x) if self.minibatch_stddev else x
        return MLP((), 1, name="logit")(x)[:, 0]


HE = nn.initializers.he_normal()


def activation(x: Array) -> Array:
    """Leaky ReLU with slope 0.2."""
    return jax.nn.leaky_relu(x, 0.2)


class Translator(nn.Module):
    """tanh(W images + f(images)): float32 images of ``channels`` in [-1, 1] from images with any number of channels.

    W is a 1x1 convolution and f that of `Restorer`; both start at zero. On a task that needs W = -1, a CycleGAN learns
    the inversion in 50 steps from W = 0 but not in 170 from W = 1: on the way to -1 it would pass W = 0, where the
    image and with it cycle consistency is lost. Raises ValueError if ``fold`` does not divide height and width.
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
    """images + f(images, hints): a 3x3 convolution, residual blocks, a 3x3 convolution initialised to zero.

    f works on `space_to_depth` of ``fold``, which takes fold^-2 of the time and widens the receptive field ``fold``
    times; its residual blocks are EDSR's (arXiv 1707.02921). ``hints`` [B, height, width, any], such as a mask, are
    further input channels. Raises ValueError if ``fold`` does not divide height and width.
    """

    width: int = 48
    blocks: int = 4
    fold: int = 2
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images, hints: Float[Array, "B height width D"] | None = None) -> Images:
        seen = images if hints is None else jnp.concatenate([images, hints], -1)
        return images + changes(self, seen, images.shape[-1]).astype(images.dtype)


def restore(network: Restorer, params: PyTree, images: Images, mask: Float[Array, "B height width 1"] | None) -> Images:
    """The network's output; with a ``mask``, which is its hint, only where that is positive, else the input."""
    if mask is None:
        return cast(Array, network.apply({"params": params}, images))
    return jnp.where(mask > 0, cast(Array, network.apply({"params": params}, images, mask)), images)


def changes(module: Any, images: Images, channels: int) -> Float[Array, "B height width {channels}"]:
    """The residual f of `Restorer`, for compact modules with its fields; zero at initialisation."""
    x = Conv(module.width, (3, 3), kernel_init=HE, dtype=module.dtype)(space_to_depth(images, module.fold))
    for _ in range(module.blocks):
        x = ResidualBlock(dtype=module.dtype)(x)
    zeros = nn.initializers.zeros
    x = Conv(channels * module.fold**2, (3, 3), kernel_init=zeros, dtype=module.dtype)(activation(x))
    return depth_to_space(x, module.fold)
