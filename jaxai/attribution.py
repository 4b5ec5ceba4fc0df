"""Attribution of a classifier's decision to the pixels of its input: four methods, as pure functions.

A classifier is any function ``logits(images [B, H, W, C]) -> [B, classes]`` that JAX can trace and that treats every
image independently (batch normalisation in evaluation mode), such as ``lambda x: model.apply(variables, x)``.
``targets`` [B] is the class to explain for each image. Targets are checked outside of ``jit`` and ``vmap``; inside,
where their values are unknown, a target out of range gives NaN.

The functions explain the logit, which doesn't saturate as a probability does. To explain the probability, pass
``lambda x: jax.nn.softmax(logits(x))``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike

from jaxai.typing import Array, Float, Images, Int

Classifier = Callable[[Images], Float[Array, "B classes"]]


Targets = Int[Array | np.ndarray, " B"]


Maps = Float[Array, "B height width"]


def gradient_times_input(logits: Classifier, images: Images, targets: Targets) -> Images:
    """The gradient of the target's logit times the image, x_i dF_t(x)/dx_i: [B, H, W, C] in the images' dtype.

    Exact for a linear F without a bias: the attributions sum to F_t(x). Pixels of 0 (mid-grey for images in [-1, 1])
    get attribution 0. Named by Shrikumar et al. 2017, arXiv 1704.02685. ValueError for images that are not float
    [B, H, W, C], targets that are not integers [B] in 0 ... classes - 1, and logits that are not [B, classes].

    >>> images, weights = jnp.full((1, 1, 2, 1), 2.0), jnp.array([[1.0, 0.0], [3.0, 0.0]])
    >>> gradient_times_input(lambda x: x.reshape(1, 2) @ weights, images, jnp.array([0]))[0, 0, :, 0].tolist()
    [2.0, 6.0]
    """
    _check(images, targets)
    return _gradient(logits, images, targets) * images


def integrated_gradients(
    logits: Classifier, images: Images, targets: Targets, baseline: Float[ArrayLike, "..."] = 0.0, *, steps: int = 64
) -> Images:
    """The gradient averaged over the straight line from the baseline b to the image: [B, H, W, C].

    (x_i - b_i) * int_0^1 dF_t(b + a (x - b))/dx_i da. The attributions sum to F_t(x) - F_t(b), up to the error of the
    quadrature (``completeness_error``). ``baseline``: a number, [C], [H, W, C] or [B, H, W, C]; black is -1 for images
    in [-1, 1]. ``steps`` Gauss-Legendre points: on a smooth network 16 points have an error of 1e-12, the midpoint rule
    6e-4; at the kinks of ReLU both have about 1 / steps (1 % with 64 points on the digit classifier).

    The gradients are computed one after the other, so memory doesn't grow with ``steps``. In such a loop XLA's CPU
    convolutions are 4 to 10 times slower; ``jaxai.ops.conv.conv(..., implementation="matmul")`` isn't.

    Source: Sundararajan et al. 2017, arXiv 1703.01365, equation 1. ValueError as in ``gradient_times_input``, for a
    baseline that doesn't fit, and for ``steps`` < 1.
    """
    _check(images, targets)
    if steps < 1:
        raise ValueError(f"steps={steps}: give at least 1")
    start = _baseline(baseline, images)
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # of [-1, 1], and the weights sum to 2
    dtype = jnp.promote_types(images.dtype, jnp.float32)

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        position, weight = node
        at = start + position.astype(images.dtype) * (images - start)
        return total + weight * _gradient(logits, at, targets).astype(dtype), None

    points = jnp.asarray((nodes + 1) / 2, dtype), jnp.asarray(weights / 2, dtype)
    mean, _ = lax.scan(add, jnp.zeros(images.shape, dtype), points)
    return (mean * (images - start)).astype(images.dtype)


def completeness_error(
    logits: Classifier,
    images: Images,
    targets: Targets,
    attributions: Images,
    baseline: Float[ArrayLike, "..."] = 0.0,
) -> Float[Array, " B"]:
    """The sum of an image's attributions minus (F_t(x) - F_t(baseline)): the deviation from completeness.

    0 for exact integrated gradients; decreases with ``steps``. ValueError as in ``integrated_gradients``, and for
    attributions that don't have the images' shape.
    """
    _check(images, targets)
    if attributions.shape != images.shape:
        raise ValueError(f"attributions: shape {attributions.shape} for images {images.shape}, give the same")
    difference = _pick(logits(images), targets) - _pick(logits(_baseline(baseline, images)), targets)
    return attributions.sum((1, 2, 3)) - difference


def grad_cam(
    features: Callable[[Images], Float[Array, "B h w F"]],
    head: Callable[[Float[Array, "B h w F"]], Float[Array, "B classes"]],
    images: Images,
    targets: Targets,
) -> Maps:
    """A map of where the features that raise the target's logit are active: [B, H, W], non-negative.

    relu(sum_f alpha_f A_f) for A = features(x) [B, h, w, F], usually the last convolution's output, and logits head(A);
    alpha_f is the mean over h and w of dF_t/dA_f. Resized bilinearly to the images. Not normalised: an all-zero map
    means that nothing in A supports the target. Suited to heads that pool over h and w. The mean loses most of the
    information for other heads, such as the digit classifier's dense layer on flattened maps.

    Source: Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2. ValueError as in ``gradient_times_input``, and
    for features that are not [B, h, w, F].
    """
    _check(images, targets)
    maps = features(images)
    if maps.ndim != 4 or len(maps) != len(images):
        raise ValueError(f"features(images): shape {maps.shape} for images {images.shape}, give [B, h, w, F]")
    alphas = _gradient(head, maps, targets).mean((1, 2), keepdims=True)
    return jax.image.resize(jax.nn.relu((alphas * maps).sum(-1)), images.shape[:3], "linear")


def occlusion(
    logits: Classifier, images: Images, targets: Targets, window: int, *, stride: int = 1, fill: float = 0.0
) -> Maps:
    """The drop of the target's logit when a patch is covered, F_t(x) - F_t(x covered): [B, H, W].

    The ``window`` x ``window`` patch of value ``fill`` moves by ``stride``, with a last position at the far border; a
    pixel gets the mean over all patches that contain it. Positions are evaluated one after the other, so memory doesn't
    grow with their number.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2 (there the probability). ValueError as in
    ``gradient_times_input``, for a window that is not in 1 ... min(H, W), and for a stride not in 1 ... ``window``,
    which would leave pixels out.
    """
    _check(images, targets)
    _, height, width, _ = images.shape
    if not 1 <= window <= min(height, width):
        raise ValueError(f"window={window} for images {images.shape}: give 1 to {min(height, width)}")
    if not 1 <= stride <= window:
        raise ValueError(f"stride={stride} with window={window}: give 1 to {window}, so that every pixel is covered")
    rows, columns = _covers(height, window, stride), _covers(width, window, stride)
    whole = _pick(logits(images), targets)

    def fall(place: Array) -> Array:
        covered = (jnp.asarray(rows)[place[0]][:, None] & jnp.asarray(columns)[place[1]][None])[None, :, :, None]
        return whole - _pick(logits(jnp.where(covered, jnp.asarray(fill, images.dtype), images)), targets)

    places = np.stack(np.meshgrid(np.arange(len(rows)), np.arange(len(columns)), indexing="ij"), -1).reshape(-1, 2)
    falls = lax.map(fall, jnp.asarray(places)).reshape(len(rows), len(columns), -1)
    by_row, by_column = ((cover / cover.sum(0)).astype(falls.dtype) for cover in (rows, columns))
    return jnp.einsum("pqb,ph,qw->bhw", falls, by_row, by_column, precision="highest")


def explain(
    logits: Classifier,
    features: Callable[[Images], Maps],
    head: Callable[[Any], Float[Array, "B classes"]],
    images: Images,
    targets: Targets,
    *,
    window: int,
    fill: float,
) -> dict[str, np.ndarray]:
    """All four attributions of images, by name; ``logits(x) = head(features(x))``, ``fill`` is that of `occlusion`."""
    maps = {
        "gradient x input": gradient_times_input(logits, images, targets),
        "integrated gradients": integrated_gradients(logits, images, targets, steps=32),
        "Grad-CAM": grad_cam(features, head, images, targets),
        "occlusion": occlusion(logits, images, targets, window, stride=window // 2, fill=fill),
    }
    return jax.device_get(maps)


def _gradient(function: Callable[[Array], Array], x: Array, targets: Array | np.ndarray) -> Array:
    return jax.grad(lambda x: _pick(function(x), targets).sum())(x)  # of the sum: images are independent


def _pick(logits: Array, targets: Array | np.ndarray) -> Array:
    """logits[b, targets[b]], [B]; both its value and its gradient are NaN for a traced target out of range."""
    if logits.ndim != 2 or len(logits) != len(targets):
        raise ValueError(f"logits: shape {logits.shape} for {len(targets)} images, give [B, classes]")
    classes = logits.shape[1]
    try:
        known = np.asarray(targets)
    except jax.errors.TracerArrayConversionError:
        known = np.zeros(1, int)
    if (bad := known[(known < 0) | (known >= classes)]).size:
        raise ValueError(f"targets: {bad[0]} among them, give 0 to {classes - 1}, the classes of the logits")
    targets = jnp.asarray(targets)
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1, mode="clip")[:, 0]
    return picked * jnp.where((targets >= 0) & (targets < classes), 1.0, jnp.nan).astype(picked.dtype)


def _baseline(baseline: ArrayLike, images: Array) -> Array:
    baseline = jnp.asarray(baseline, images.dtype)
    if baseline.shape != images.shape[4 - baseline.ndim :]:
        raise ValueError(f"baseline: shape {baseline.shape} for images {images.shape}, give a number or [(B,) H, W, C]")
    return jnp.broadcast_to(baseline, images.shape)


def _covers(size: int, window: int, stride: int) -> np.ndarray:
    """Which of ``size`` pixels each position of the window covers: bool [positions, size]."""
    starts = sorted({*range(0, size - window + 1, stride), size - window})
    pixel = np.arange(size)
    return np.stack([(pixel >= start) & (pixel < start + window) for start in starts])


def _check(images: Array, targets: Array | np.ndarray) -> None:
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: {images.dtype}{list(images.shape)}, give floats of shape [B, H, W, C]")
    if targets.shape != images.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets: {targets.dtype}{list(targets.shape)}, give one integer for each of {len(images)}")
