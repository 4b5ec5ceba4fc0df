"""A generator and a discriminator of Transformer blocks: a token is a patch of the image.

There is no batch normalisation. With `jaxai.attention`, gradient penalties, which need second derivatives, take O(T)
memory. Sources: TransGAN, arXiv 2102.07074; ViTGAN, arXiv 2107.04589.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import DTypeLike, Float

from jaxai.gan.networks import HE, Labels, Latents, Logits, activation, embedded, projected, with_latents
from jaxai.nn.layers import Conv
from jaxai.nn.transformer import Stack, TransformerConfig
from jaxai.typing import Array, Images

Tokens = Float[Array, "B T E"]


class TransformerGenerator(nn.Module):
    """Two dense layers from latents to tokens, Transformer blocks, a patch per token, a 3x3 convolution, tanh.

    ``image_shape`` (height, width, C) is divided into squares of ``patch`` x ``patch`` pixels: T = height width /
    patch^2 tokens of ``config.embed_dim``. Patches have ``channels`` channels; the convolution smooths their borders.
    Returns float32. Raises ValueError if ``patch`` does not divide height and width.
    """

    config: TransformerConfig
    image_shape: tuple[int, int, int] = (28, 28, 1)
    patch: int = 4
    hidden: int = 256
    channels: int = 16
    classes: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, latents: Latents, labels: Labels = None) -> Images:
        height, width = patches(self.image_shape, self.patch)
        x = with_latents(latents, embedded(labels, self.classes, latents.shape[-1]))
        x = activation(nn.Dense(self.hidden, kernel_init=HE, dtype=self.dtype)(x))
        x = nn.Dense(height * width * self.config.embed_dim, kernel_init=HE, dtype=self.dtype)(x)
        x = x.reshape(len(x), height * width, self.config.embed_dim)
        x = Stack(self.config, causal=False, cross=False, dtype=self.dtype)(add_position_embedding(self, x))[0]
        x = nn.Dense(self.patch**2 * self.channels, kernel_init=HE, dtype=self.dtype)(x)
        x = x.reshape(len(x), height, width, self.patch, self.patch, self.channels).swapaxes(2, 3)
        x = x.reshape(len(x), *self.image_shape[:2], self.channels)
        x = Conv(self.image_shape[2], (3, 3), kernel_init=HE, dtype=self.dtype)(activation(x))
        return jnp.tanh(x.astype(jnp.float32))


class TransformerDiscriminator(nn.Module):
    """A convolution to one token per patch, blocks, the mean over tokens, a dense layer; one float32 logit.

    The convolution's window is twice the patch size, so patches overlap. Raises ValueError if ``patch`` does not divide
    height and width.
    """

    config: TransformerConfig
    patch: int = 4
    hidden: int = 256
    classes: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Images, labels: Labels = None) -> Logits:
        height, width = patches(images.shape[1:], self.patch)
        x = Conv(self.config.embed_dim, (2 * self.patch, 2 * self.patch), strides=self.patch, dtype=self.dtype)(images)
        x = x.reshape(len(x), height * width, self.config.embed_dim)
        x = Stack(self.config, causal=False, cross=False, dtype=self.dtype)(add_position_embedding(self, x))[0]
        x = activation(nn.Dense(self.hidden, kernel_init=HE, dtype=self.dtype)(x.mean(1)))
        logits = nn.Dense(1, dtype=jnp.promote_types(x.dtype, "float32"))(x)[:, 0]  # losses subtract it
        return projected(logits, x, embedded(labels, self.classes, self.hidden))


def patches(image_shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    """The number of rows and of columns of patches. Raises ValueError if ``patch`` does not divide the image."""
    height, width = image_shape[:2]
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"patch={patch} does not divide images of {height}x{width}: give a divisor of both")
    return height // patch, width // patch


def add_position_embedding(module: nn.Module, x: Tokens) -> Tokens:
    """Add a learned vector for each position to the tokens."""
    return x + module.param("positions", nn.initializers.normal(0.5), (1, *x.shape[1:])).astype(x.dtype)
