"""The fixed digit classifier: pure functions over a flat dict of arrays.

All scores of generated digits use the 64 features of this network (Inception's features are not meaningful for 28x28
digits), so its parameters are fixed: the file's SHA-256 is stored here and verified on loading.
``experiments/digit_classifier.py`` trains it; ``files/README.md`` describes how the shipped file was made.
"""

import hashlib
import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import lax
from jaxtyping import Float

from jaxai.ops.pixels import to_signed
from jaxai.ops.pool import max_pool
from jaxai.typing import Array, Int, Key, Pixels

SHA256 = "961c7672120ebf56bfb85a3d232f3e2519320cecb4d4d843ddee2b4fe3c66473"
CONVOLUTIONS = ((5, 1, 24, "SAME"), (3, 24, 48, "VALID"), (3, 48, 64, "SAME"))  # size, channels in, out, padding
DENSE = ((576, 64), (64, 10))
SMOOTHING = 0.05  # label smoothing in training: `experiments/digit_classifier.py`


def init(key: Key[Array, ""]) -> dict[str, Array]:
    """He-normal kernels and zero biases: ``conv0.kernel`` [5,5,1,24] ... ``dense1.bias`` [10]; 76,330 float32 numbers.

    Source: He et al. 2015, arXiv 1502.01852.
    """
    shapes = {f"conv{i}": (size, size, c_in, c_out) for i, (size, c_in, c_out, _) in enumerate(CONVOLUTIONS)}
    shapes |= {f"dense{i}": shape for i, shape in enumerate(DENSE)}
    normal, params = jax.nn.initializers.he_normal(), {}
    for layer_key, (name, shape) in zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True):
        params[f"{name}.kernel"] = normal(layer_key, shape)
        params[f"{name}.bias"] = jnp.zeros(shape[-1])
    return params


def apply(
    params: dict[str, Array], images: Float[Array, "B 28 28 1"]
) -> tuple[Float[Array, "B 10"], Float[Array, "B 64"]]:
    """Class logits and the features before the last layer, for float32 images in [-1, 1].

    Three blocks of convolution, 2x2 max pooling and ReLU; a dense layer with ReLU, whose output is the features; and a
    dense layer for the logits.
    """
    x = images
    for i, (_, _, _, padding) in enumerate(CONVOLUTIONS):
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, params[f"conv{i}.kernel"], (1, 1), padding, dimension_numbers=layout)
        x = jax.nn.relu(max_pool(x, 2, strides=2) + params[f"conv{i}.bias"][None, None, None])
    x = x.reshape(len(x), -1)
    features = jax.nn.relu(x @ params["dense0.kernel"] + params["dense0.bias"][None])
    return features @ params["dense1.kernel"] + params["dense1.bias"][None], features


def load() -> dict[str, Array]:
    """Load the shipped parameters. ValueError if the file's SHA-256 differs from the one in this module."""
    data = importlib.resources.files("jaxai.metrics").joinpath("files/digits.safetensors").read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise ValueError(f"files/digits.safetensors has SHA-256 {found}, expected {SHA256}: reinstall jaxai")
    return {name: jnp.asarray(array) for name, array in safetensors.numpy.load(data).items()}


def check_images(name: str, images: np.ndarray | Array) -> np.ndarray:
    """``images`` as a NumPy array; ValueError, with ``name``, unless they are uint8 [n >= 1, 28, 28, 1]."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28, 1) or not len(images):
        raise ValueError(f"{name}: {images.dtype}{list(images.shape)}, give uint8 images of shape [n >= 1, 28, 28, 1]")
    return images


def features_and_labels(
    images: np.ndarray | Array, params: dict[str, Array] | None = None
) -> tuple[Float[np.ndarray, "n 64"], Int[np.ndarray, " n"]]:
    """Float32 features and predicted digits of uint8 images [n,28,28,1], by the shipped classifier or by ``params``.

    Runs in batches of one size, the last one padded, so that the program is compiled only once for all n. ValueError
    for other shapes and dtypes.
    """
    images = check_images("images", images)
    params = load() if params is None else params
    batch, count = 500, len(images)
    padded = np.concatenate([images, np.zeros((-count % batch, 28, 28, 1), np.uint8)])
    results = [_forward(params, padded[i : i + batch]) for i in range(0, len(padded), batch)]
    features, labels = (np.concatenate(parts)[:count] for parts in zip(*results, strict=True))
    return features, labels


def confidence(features: Float[np.ndarray, "n 64"]) -> Float[np.ndarray, " n"]:
    """The shipped classifier's probability of its predicted digit, from its features; 0 ... 1.

    The label smoothing of 0.05 limits p to 0.955 where the classifier is certain; it is undone by
    q = (p - 0.005) / 0.95.
    """
    params = load()
    logits = features @ np.asarray(params["dense1.kernel"]) + np.asarray(params["dense1.bias"])
    largest = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    return np.clip((largest - SMOOTHING / 10) / (1 - SMOOTHING), 0, 1)


@jax.jit
def _forward(params: dict[str, Array], images: Pixels) -> tuple[Float[Array, "B 64"], Int[Array, " B"]]:
    with jax.default_matmul_precision("highest"):  # the same features on every device, no TF32 or bfloat16
        logits, features = apply(params, to_signed(images))
    return features, logits.argmax(-1)
