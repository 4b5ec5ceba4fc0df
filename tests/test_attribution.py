"""Explanations: linear and polynomial classifiers by hand, slow oracles, completeness, and real digits."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.attribution import completeness_error, grad_cam, gradient_times_input, integrated_gradients, occlusion
from jaxai.data.embedded import mnist
from jaxai.metrics import digits
from jaxai.ops.pixels import to_signed

SHAPE, CLASSES = (3, 4, 5, 2), 3
TARGETS = np.array([2, 0, 1])


def images(dtype="float32", seed=0, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def weights(*shape, seed=1, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0]), dtype)


def linear(x, bias=0.5):
    return x.reshape(len(x), -1) @ weights(40, CLASSES, dtype=x.dtype) + bias


def network(x, activation=jnp.tanh):
    hidden = activation(x.reshape(len(x), -1) @ weights(40, 32, dtype=x.dtype))
    return hidden @ weights(32, CLASSES, seed=2, dtype=x.dtype)


def of_targets(logits):
    return np.asarray(logits)[np.arange(len(TARGETS)), TARGETS]


METHODS = {
    "gradient_times_input": gradient_times_input,
    "integrated_gradients": partial(integrated_gradients, steps=4),
    "grad_cam": lambda f, *rest: grad_cam(jnp.sin, f, *rest),
    "occlusion": lambda f, *rest: occlusion(f, *rest, 2, stride=2),
}


def test_a_linear_classifier_is_its_own_explanation():
    x = images()
    kernel = np.asarray(weights(40, CLASSES)).T[TARGETS].reshape(SHAPE)
    simple, grey, black, falls = jax.jit(
        lambda x: (
            gradient_times_input(linear, x, TARGETS),
            *(integrated_gradients(linear, x, TARGETS, baseline, steps=1) for baseline in (0.0, -1.0)),
            occlusion(linear, x, TARGETS, 1, fill=-1),
        )
    )(x)
    x = np.asarray(x)
    np.testing.assert_allclose(simple, kernel * x, rtol=1e-6)
    np.testing.assert_allclose(grey, kernel * x, rtol=1e-6)
    np.testing.assert_allclose(black, kernel * (x + 1), rtol=1e-6)
    np.testing.assert_allclose(falls, np.sum(kernel * (x + 1), -1), rtol=1e-4, atol=1e-5)


def test_integrated_gradients_of_polynomials():
    """A pixel's cube is its own, a product is shared by halves; a gradient of degree 2 needs two steps."""

    def polynomial(x):
        x = x.reshape(len(x), -1)
        return jnp.stack([(x**3).sum(1), x[:, 0] * x[:, 1]], 1)

    x, targets = jnp.array([[1.0, 2.0], [3.0, -1.0]]).reshape(2, 1, 2, 1), np.array([0, 1])
    expected = np.array([[1.0, 8.0], [-1.5, -1.5]]).reshape(2, 1, 2, 1)
    np.testing.assert_allclose(integrated_gradients(polynomial, x, targets, steps=2), expected, rtol=1e-5)
    assert abs(integrated_gradients(polynomial, x, targets, steps=1) - expected)[0].max() > 0.01


def test_gradients_are_finite_differences():
    with jax.enable_x64(True):
        x, step, run = images("float64"), 1e-6, jax.jit(network)
        slopes = np.zeros(SHAPE)
        for place in np.ndindex(SHAPE[1:]):
            shift = np.zeros((1, *SHAPE[1:]))
            shift[0, *place] = step
            slopes[:, *place] = (of_targets(run(x + shift)) - of_targets(run(x - shift))) / (2 * step)
        actual = jax.jit(partial(gradient_times_input, network))(x, TARGETS)
    np.testing.assert_allclose(actual, slopes * np.asarray(x), atol=1e-8)  # 1e-16 / step, and step^2


def errors(function, steps, baseline=-1.0):
    with jax.enable_x64(True):
        x = images("float64")
        attributions = integrated_gradients(function, x, TARGETS, baseline, steps=steps)
        return np.abs(completeness_error(function, x, TARGETS, attributions, baseline))


def test_integrated_gradients_are_complete_on_a_smooth_network():
    assert errors(network, 16).max() < 1e-11
    assert errors(network, 2).max() > 1e-3


def test_more_steps_are_more_complete_on_a_network_with_kinks():
    relu = partial(network, activation=jax.nn.relu)
    few, some, many = (errors(relu, steps).mean() for steps in (2, 16, 128))
    assert few > 4 * some > 16 * many
    assert many < 0.005  # the gradient jumps at 32 kinks, each met to 1 / steps


def test_completeness_error_is_the_difference():
    x, baseline = images(), images(seed=5, shape=SHAPE[1:])
    expected = 40 - of_targets(network(x)) + of_targets(network(jnp.broadcast_to(baseline, SHAPE)))
    np.testing.assert_allclose(completeness_error(network, x, TARGETS, jnp.ones(SHAPE), baseline), expected, rtol=1e-6)


def test_baselines_of_every_shape():
    x, run = images(), partial(integrated_gradients, network, steps=3)
    full = run(x, TARGETS, jnp.full(SHAPE, -1.0))
    for shape in ((2,), SHAPE[1:]):
        np.testing.assert_array_equal(run(x, TARGETS, np.full(shape, -1.0)), full)
    np.testing.assert_array_equal(run(x, TARGETS, -1), full)
    np.testing.assert_array_equal(run(x, TARGETS, x), 0)


def test_grad_cam_by_hand():
    """alpha = (2, -1) / 4; the map relu([[1, 2], [3, 4]] / 2 - [[4, 0], [0, 1]] / 4), then twice as large."""
    maps = jnp.array([[[1.0, 4.0], [2.0, 0.0]], [[3.0, 0.0], [4.0, 1.0]]])[None]
    kernel = jnp.array([[5.0, 2.0], [3.0, -1.0]])
    features, head = (lambda x: jnp.broadcast_to(maps, (len(x), 2, 2, 2))), (lambda a: a.sum((1, 2)) / 4 @ kernel)
    small = np.array([[0, 1], [1.5, 1.75]])
    explain = jax.jit(partial(grad_cam, features, head))
    actual = explain(jnp.zeros((2, 2, 2, 1)), np.array([1, 1]))
    np.testing.assert_allclose(actual, [small, small], rtol=1e-6)
    twice = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # bilinear, pixels being areas
    actual = explain(jnp.zeros((1, 4, 4, 1)), np.array([1]))
    np.testing.assert_allclose(actual[0], twice @ small @ twice.T, rtol=1e-6)


def test_grad_cam_averages_a_gradient_that_differs_by_place():
    with jax.enable_x64(True):
        x = images("float64")
        gradient = jax.jit(jax.vmap(jax.grad(lambda a, t: network(a[None])[0, t])))(x, TARGETS)
        expected = np.maximum((np.asarray(gradient).mean((1, 2), keepdims=True) * np.asarray(x)).sum(-1), 0)
        actual = jax.jit(partial(grad_cam, lambda x: x, network))(x, TARGETS)
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    assert (expected > 0).any()


@pytest.mark.parametrize(("window", "stride", "fill"), [(1, 1, 0.0), (2, 1, -1.0), (3, 2, 0.5), (2, 2, 0.0), (4, 4, 1)])
def test_occlusion_is_the_mean_over_patches(window, stride, fill):
    x, run = np.asarray(images()), jax.jit(network)
    whole = of_targets(run(x))
    total, count = np.zeros(SHAPE[:3]), np.zeros(SHAPE[:3])
    for top in sorted({*range(0, 5 - window, stride), 4 - window}):
        for left in sorted({*range(0, 6 - window, stride), 5 - window}):
            patch, covered = np.s_[:, top : top + window, left : left + window], x.copy()
            covered[patch] = fill
            fall = whole - of_targets(run(covered))
            total[patch] += fall[:, None, None]
            count[patch] += 1
    assert (count > 0).all()
    actual = jax.jit(lambda x: occlusion(network, x, TARGETS, window, stride=stride, fill=fill))(x)
    np.testing.assert_allclose(actual, total / count, rtol=1e-5, atol=1e-5)  # float32 differences of logits near 1


@pytest.mark.parametrize("name", METHODS)
def test_jit_and_vmap(name):
    run, x = METHODS[name], images()
    explain = partial(run, network)
    expected = explain(x, TARGETS)
    np.testing.assert_allclose(jax.jit(explain)(x, TARGETS), expected, rtol=1e-5, atol=1e-6)  # another program
    classes = np.array([[0, 1, 2], [2, 2, 0]])
    mapped = np.asarray(jax.jit(jax.vmap(explain, (None, 0)))(x, classes))
    for actual, targets in zip(mapped, classes, strict=True):
        np.testing.assert_allclose(actual, explain(x, targets), rtol=1e-5, atol=1e-6)
    pairs = [x, -x]
    mapped = np.asarray(jax.jit(jax.vmap(explain, (0, None)))(np.stack(pairs), TARGETS))
    for actual, pair in zip(mapped, pairs, strict=True):
        np.testing.assert_allclose(actual, explain(pair, TARGETS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_image_is_explained_by_itself(name):
    explain, x = jax.jit(partial(METHODS[name], network)), np.asarray(images())
    whole = explain(x, TARGETS)
    for i in range(3):
        np.testing.assert_allclose(explain(x[i : i + 1], TARGETS[i : i + 1])[0], whole[i], rtol=1e-5, atol=1e-6)
    assert abs(explain(x, (TARGETS + 1) % 3) - whole).max() > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16(name):
    x, explain = images(), jax.jit(partial(METHODS[name], network))
    actual = explain(x.astype("bfloat16"), TARGETS)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype("float32"), explain(x, TARGETS), atol=0.1)  # logits near 1, 8 bits


@pytest.mark.parametrize("name", METHODS)
def test_traced_targets_out_of_range_are_nan(name):
    result = jax.jit(partial(METHODS[name], network))(images(), jnp.array([0, CLASSES, -1]))
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1:]).all()


def temporaries(explain):
    compiled = jax.jit(explain).lower(images(shape=(16, 4, 5, 2)), jnp.zeros(16, int)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_steps_and_positions():
    few, many = (temporaries(partial(integrated_gradients, network, steps=steps)) for steps in (4, 64))
    assert many < 1.2 * few
    few, many = (temporaries(lambda x, t, w=window: occlusion(network, x, t, w)) for window in (4, 1))
    assert many < 2 * few  # 20 positions against 2; one logit is kept for each


@pytest.mark.slow
def test_attributions_find_what_the_digit_classifier_reads():
    """Logits fall most without the 20 highest of the ink's pixels, less without any 20, least without the lowest."""
    pixels, targets = (array[:16] for array in mnist("test"))
    params, x = digits.load(), to_signed(pixels)

    def logits(x):
        return digits.apply(params, x)[0]

    attributions = jax.jit(partial(integrated_gradients, logits, steps=32))(x, targets, -1.0)
    error = completeness_error(logits, x, targets, attributions, -1.0)
    whole = -completeness_error(logits, x, targets, jnp.zeros_like(x), -1.0)
    assert abs(error).mean() < 0.05 * whole.mean()  # the paper's rule; the network has kinks
    flat, scores = np.asarray(x).reshape(16, -1), np.asarray(attributions).reshape(16, -1)
    falls = []
    for order in (scores, np.random.default_rng(0).random(scores.shape), -scores):
        erased, highest = flat.copy(), np.where(flat > 0, order, -np.inf).argsort(1)[:, -20:]
        np.put_along_axis(erased, highest, -1, axis=1)
        without = jnp.asarray(erased).reshape(x.shape)
        falls.append(-completeness_error(logits, x, targets, jnp.zeros_like(x), without).mean())
    assert falls[0] > falls[1] + 0.5 > falls[2] + 1


X = jnp.zeros(SHAPE)
INTEGRATE = partial(inspect.unwrap(integrated_gradients), network)
OCCLUDE = partial(inspect.unwrap(occlusion), network, X, TARGETS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: INTEGRATE(X[0], TARGETS), r"images: float32\[4, 5, 2\], give floats of shape \[B, H, W, C\]"),
        (lambda: INTEGRATE(X.astype("uint8"), TARGETS), "images: uint8"),
        (lambda: INTEGRATE(X, TARGETS[:2]), r"targets: int64\[2\], give one integer for each of 3"),
        (lambda: INTEGRATE(X, TARGETS / 2), "targets: float64"),
        (lambda: INTEGRATE(X, TARGETS + 1), "targets: 3 among them, give 0 to 2"),
        (lambda: INTEGRATE(X, TARGETS - 1), "targets: -1 among them"),
        (lambda: INTEGRATE(X, TARGETS, np.zeros((3, 4, 5))), r"baseline: shape \(3, 4, 5\)"),
        (lambda: INTEGRATE(X, TARGETS, steps=0), "steps=0: give at least 1"),
        (lambda: inspect.unwrap(gradient_times_input)(lambda x: x[:, 0, 0, 0], X, TARGETS), r"logits: shape \(3,\)"),
        (lambda: inspect.unwrap(completeness_error)(network, X, TARGETS, X[:1]), "attributions: shape"),
        (lambda: inspect.unwrap(grad_cam)(lambda x: x[..., 0], network, X, TARGETS), r"features\(images\): shape"),
        (lambda: inspect.unwrap(grad_cam)(lambda x: x, network, X, TARGETS + 9), "targets: 11 among them"),
        (lambda: OCCLUDE(5), "window=5 .* give 1 to 4"),
        (lambda: OCCLUDE(0), "window=0"),
        (lambda: OCCLUDE(2, stride=3), "stride=3 with window=2: give 1 to 2"),
        (lambda: OCCLUDE(2, stride=0), "stride=0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
