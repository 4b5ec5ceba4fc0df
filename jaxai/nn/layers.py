"""Linen layers over `jaxai.ops`: `Dense`, `Conv` and `ConvTranspose` with the parameters of Flax's, and dropout."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Float

from jaxai.ops.conv import conv, conv_transpose
from jaxai.ops.dense import dense
from jaxai.ops.dropout import dropout
from jaxai.ops.windows import Padding, Pair
from jaxai.typing import Array, Images


class Dense(nn.Module):
    """A dense layer: kernel [I, features] and bias [features], as `flax.linen.Dense`; parameters are interchangeable.

    The computation is in ``dtype`` (None: the promoted dtype of input and parameters); parameters are float32.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B F"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return dense(x, kernel, bias)


class Dropout(nn.Module):
    """`jaxai.ops.dropout` with a key from the rng ``dropout``; the identity unless ``train``."""

    rate: float
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return dropout(x, self.rate, self.make_rng("dropout")) if self.train and self.rate else x


class Conv(nn.Module):
    """Convolution of images: kernel [kh, kw, C / groups, features] and bias [features], as `flax.linen.Conv`.

    Fields are those of Flax's layer, for two dimensions, zero padding and no mask, with the semantics of
    `jaxai.ops.conv`; parameters are interchangeable. The computation is in ``dtype`` (None: the promoted dtype of input
    and parameters), parameters are in ``param_dtype``. Raises ValueError for incompatible shapes.
    """

    features: int
    kernel_size: Pair
    strides: int | Pair = 1
    padding: Padding = "SAME"
    kernel_dilation: int | Pair = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "B out_height out_width F"]:
        kernel, bias = _parameters(self, x, self.feature_group_count)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            implementation=self.implementation,
        )
        return _add_bias(y, bias)


class ConvTranspose(nn.Module):
    """Transposed convolution: kernel [kh, kw, C, features] and bias [features], as `flax.linen.ConvTranspose`.

    Fields and errors are as in `Conv`. The kernel is not flipped or transposed (`transpose_kernel=False`, Flax's
    default) and not dilated.
    """

    features: int
    kernel_size: Pair
    strides: int | Pair = 1
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "B out_height out_width F"]:
        kernel, bias = _parameters(self, x, 1)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv_transpose(x, kernel, strides=self.strides, padding=self.padding, implementation=self.implementation)
        return _add_bias(y, bias)


def _parameters(layer: Conv | ConvTranspose, x: Array, groups: int) -> tuple[Array, Array | None]:
    if isinstance(layer.kernel_size, int):  # an int means one dimension in flax.linen
        raise ValueError(f"kernel_size={layer.kernel_size}: give height and width")
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"feature_group_count={groups} must divide the {x.shape[-1]} channels of x {x.shape}")
    shape = (*layer.kernel_size, x.shape[-1] // groups, layer.features)
    kernel = layer.param("kernel", layer.kernel_init, shape, layer.param_dtype)
    if not layer.use_bias:
        return kernel, None
    return kernel, layer.param("bias", layer.bias_init, (layer.features,), layer.param_dtype)


def _add_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape(1, 1, 1, -1)
