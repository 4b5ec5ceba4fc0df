"""Image classifiers as thin Linen modules: from NHWC images to one logit per class."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from jaxai.nn.layers import Conv
from jaxai.ops.batched import map_batches
from jaxai.ops.conv import conv
from jaxai.ops.pixels import to_unit
from jaxai.ops.pool import max_pool
from jaxai.ops.windows import taps
from jaxai.typing import Images, Kernel, Key, Pixels, PyTree

Logits = Float[Array, "B classes"]
Maps = Float[Array, "B map_height map_width F"]

GLOROT = nn.initializers.glorot_uniform()


class ArticleCNN(nn.Module):
    """The Keras baseline: 3x3 valid convolutions with ReLU, 2x2 max pooling between them, a dense layer, logits.

    For 32x32x3 images and 10 classes it has 122,570 parameters, initialised as in Keras: Glorot-uniform kernels (Glorot
    and Bengio 2010), zero biases. Right and bottom pixels that pooling would drop are cropped from the input.
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
        """The last convolution's feature maps, after ReLU."""
        height, width = (used_pixels(size, len(self.channels)) for size in images.shape[1:3])
        x = images[:, :height, :width]
        for layer in self.conv:
            x = nn.relu(layer(x))
        return x

    def head(self, features: Maps) -> Logits:
        """The logits of the feature maps."""
        x = nn.relu(self.dense[0](features.reshape(len(features), -1)))
        return self.dense[1](x)


class PooledConv(nn.Module):
    """Valid 3x3 convolution and 2x2 max pooling; kernel [3, 3, C, features] and bias [features], as in `Conv`.

    The bias is added after the pooling, to a quarter of the pixels, since max(a + b) = max(a) + b: with bias and ReLU
    before the pooling, `ArticleCNN` trains at 0.8 of the speed.
    """

    features: int

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        kernel = self.param("kernel", GLOROT, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return max_pool(conv(x, kernel, padding="VALID"), 2, strides=2) + bias.reshape(1, 1, 1, -1)


def used_pixels(size: int, layers: int) -> int:
    """How many of ``size`` pixels affect the output of ``layers`` valid 3x3 convolutions with 2x2 pooling in between.

    Raises ValueError if ``size`` is too small for that.
    """
    last, smallest = size, 3
    for _ in range(layers - 1):
        last, smallest = (last - 2) // 2, 2 * smallest + 2
    if size < smallest:
        raise ValueError(f"images: {size} pixels, too few for {layers} convolutions: give {smallest} at least")
    for _ in range(layers - 1):
        last = 2 * last + 2
    return last


class AirbenchCNN(nn.Module):
    """airbench94's classifier: frozen whitening filters, three groups of two 3x3 convolutions, a linear head.

    images -> (x - mean) / std -> 2x2 whitening, GELU -> three `ConvGroup` -> 3x3 max pooling -> x W / width. Images are
    at least 25x25; for 32x32x3 and 10 classes it has 1,971,640 parameters. The kernel of ``whiten`` gets no gradient:
    set it to `whitening_kernel` before training.

    ``apply({"params": params}, images)`` normalises with the batch's statistics, as in training; for testing, also pass
    ``"batch_stats"`` from `population_statistics`. The computation is in ``dtype``; logits are float32.

    Source: Jordan 2024, arXiv 2404.00498, as in airbench94_muon, but with the tanh approximation of GELU, whose
    gradient takes half the time on CPU.
    """

    mean: Sequence[float]
    """Mean of each channel of the images."""
    std: Sequence[float]
    channels: Sequence[int] = (64, 256, 256)
    classes: int = 10
    dtype: Any = None

    def setup(self) -> None:
        self.whiten = Whitening(self.dtype)
        self.group = [ConvGroup(features, self.dtype) for features in self.channels]
        self.linear = nn.Dense(self.classes, use_bias=False, kernel_init=_unit_variance)

    def __call__(self, images: Images) -> Logits:
        return self.head(self.features(images))

    def features(self, images: Images) -> Maps:
        """The last group's feature maps."""
        x = nn.gelu(self.whiten(standardise(images, self.mean, self.std)))
        for group in self.group:
            x = group(x)
        return x

    def head(self, features: Maps) -> Logits:
        """The logits of the feature maps."""
        x = max_pool(features, 3, strides=3).reshape(len(features), -1)
        return self.linear(x.astype(jnp.float32)) / x.shape[1]


class Whitening(nn.Module):
    """2x2 valid convolution from C to 8 C channels with a frozen kernel and a trained bias."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        shape = (2, 2, x.shape[-1], 8 * x.shape[-1])
        kernel = lax.stop_gradient(self.param("kernel", nn.initializers.lecun_normal(), shape))
        bias = self.param("bias", nn.initializers.zeros_init(), shape[-1:])
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return conv(x, kernel, padding="VALID") + bias.reshape(1, 1, 1, -1)


class ConvGroup(nn.Module):
    """3x3 convolution, 2x2 max pooling, batch normalisation, GELU; 3x3 convolution, batch normalisation, GELU.

    For maps of odd size, the last row and column, which pooling would drop, are not computed.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        for pooled in (True, False):
            padding = tuple((1, 1 - size % 2 if pooled else 1) for size in x.shape[1:3])
            x = Conv(
                self.features, (3, 3), padding=padding, use_bias=False, dtype=self.dtype, kernel_init=partly_identity
            )(x)
            x = max_pool(x, 2, strides=2) if pooled else x
            x = nn.gelu(BatchNorm()(x))
        return x


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-12) + bias for each channel: batch normalisation without a scale.

    Mean and variance are read from the collection ``batch_stats`` if it is given, else computed from the batch in
    float32 and, if the collection is mutable, stored there. Source: Ioffe and Szegedy 2015, arXiv 1502.03167.
    """

    @nn.compact
    def __call__(self, x: Images) -> Images:
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        wide = x.astype(jnp.float32)
        if self.has_variable("batch_stats", "mean"):
            mean, variance = (self.get_variable("batch_stats", name) for name in ("mean", "var"))
        else:
            mean, variance = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
            if self.is_mutable_collection("batch_stats"):
                self.put_variable("batch_stats", "mean", mean)
                self.put_variable("batch_stats", "var", variance)
        scale = lax.rsqrt(variance + 1e-12)
        return (wide * scale.reshape(1, 1, 1, -1) + (bias - mean * scale).reshape(1, 1, 1, -1)).astype(x.dtype)


def population_statistics(network: nn.Module, params: PyTree, batches: Iterable[Images]) -> PyTree:
    """``batch_stats`` for testing: mean and variance of each `BatchNorm` over batches of training images.

    mean = E[mean_B] and variance = E[variance_B + mean_B^2] - mean^2 over batches B of one size, with the final
    parameters ("precise batch normalisation", Wu and Johnson 2021, arXiv 2105.07576, section 3). Images must be
    preprocessed as for testing, without augmentation.
    """

    @jax.jit
    def statistics(params: PyTree, images: Images) -> PyTree:
        _, collections = network.apply({"params": params}, images, mutable=["batch_stats"])
        return collections["batch_stats"]

    def pool(*parts: dict[str, Array]) -> dict[str, Array]:
        mean = jnp.stack([part["mean"] for part in parts]).mean(0)
        square = jnp.stack([part["var"] + part["mean"] ** 2 for part in parts]).mean(0)
        return {"mean": mean, "var": square - mean**2}

    return jax.tree.map(pool, *(statistics(params, images) for images in batches), is_leaf=lambda node: "mean" in node)


def apply(network: nn.Module, variables: PyTree, images: Images) -> Logits:
    """The network's logits for images in [0, 1]."""
    return cast(Array, network.apply(variables, images))


def testing_variables(network: nn.Module, params: PyTree, images: Pixels) -> PyTree:
    """Variables for testing: the parameters, for `AirbenchCNN` also the `population_statistics` of training images."""
    if not isinstance(network, AirbenchCNN):
        return {"params": params}
    size = min(500, len(images))
    batches = (to_unit(images[i : i + size]) for i in range(0, len(images) - size + 1, size))
    return {"params": params, "batch_stats": population_statistics(network, params, batches)}


def class_probabilities(network: nn.Module, variables: PyTree, images: Pixels) -> Float[np.ndarray, "n classes"]:
    """Class probabilities of uint8 images [n, H, W, C]; `AirbenchCNN` averages the logits of six views."""
    logits = jax.jit(lambda variables, images: apply(network, variables, to_unit(images)))

    def probabilities(images: np.ndarray) -> Array:
        views = six_views(images) if isinstance(network, AirbenchCNN) else [(1.0, images)]
        return jax.nn.softmax(sum(weight * logits(variables, view) for weight, view in views))

    return map_batches(probabilities, np.asarray(images), batch_size=500)


def six_views(images: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Yield weights and views for test-time augmentation: the images and two shifts by a pixel, each also mirrored.

    Source: Jordan 2024, arXiv 2404.00498, section 3.5. Images are numpy arrays [n, H, W, C].
    """
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    for weight, view in [(0.25, images), (0.125, padded[:, :-2, :-2]), (0.125, padded[:, 2:, 2:])]:
        yield weight, view
        yield weight, view[:, :, ::-1]


def whitening_kernel(images: Images) -> Kernel:
    """Filters [2, 2, C, 8 C] for `Whitening`: their outputs on patches of these standardised images are uncorrelated.

    They are the eigenvectors of the patches' second moments, divided by sqrt(eigenvalue + 5e-4), and their negatives.
    Source: Page 2019, How to train your ResNet, part 8; Jordan 2024, arXiv 2404.00498, section 3.2.
    """
    patches = jnp.concatenate(taps(images, (2, 2), (1, 1)), -1)
    count, channels = patches.size // patches.shape[-1], images.shape[-1]
    moments = jnp.einsum("nhwi,nhwj->ij", patches, patches, precision="highest") / count
    values, vectors = jnp.linalg.eigh(moments)
    filters = (vectors / jnp.sqrt(values + 5e-4)[None]).reshape(2, 2, channels, -1)
    return jnp.concatenate([filters, -filters], -1)


def standardise(images: Images, mean: Sequence[float], std: Sequence[float]) -> Images:
    """(x - mean) / std, with mean and std [C]."""
    centre, scale = (jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1) for values in (mean, std))
    return (images - centre) / scale


def partly_identity(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Kernel:
    """A kernel whose first C outputs copy the C inputs; the others are uniform in +-1 / sqrt(fan in), as in PyTorch.

    Source: Jordan 2024, arXiv 2404.00498, section 3.3.
    """
    height, width, copied = *shape[:2], min(shape[2:])
    kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    both = jnp.arange(copied)
    return kernel.at[..., :copied].set(0).at[height // 2, width // 2, both, both].set(1)


def _unit_variance(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    return jax.random.uniform(key, shape, dtype, -(3**0.5), 3**0.5)
