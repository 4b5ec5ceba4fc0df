"""Convolutions against a NumPy oracle and `jax.lax`, in every implementation, to second order in both modes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import export, lax

from jaxai.ops import reference
from jaxai.ops.conv import conv, conv_transpose

NUMBERS = ("NHWC", "HWIO", "NHWC")
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}  # float32: 72 terms of size 1, summed in another order
IMPLEMENTATIONS = ["lax", "matmul", None]
CASES = {  # name: (x, kernel, strides, padding); the article's shapes made small, and awkward ones
    "first layer": ((2, 6, 5, 1), (3, 3, 1, 5), 1, "SAME"),
    "last layer": ((2, 5, 6, 6), (3, 3, 6, 1), 1, "SAME"),
    "middle layer": ((2, 4, 4, 6), (3, 3, 6, 5), 1, "VALID"),
    "stride 2": ((2, 6, 6, 3), (4, 4, 3, 5), 2, "SAME"),
    "uneven": ((2, 5, 7, 2), (3, 2, 2, 5), (3, 2), ((1, 0), (2, 3))),
    "one pixel, stride 2": ((1, 5, 4, 6), (1, 1, 6, 5), 2, "VALID"),
    "cropping": ((1, 6, 6, 2), (3, 3, 2, 2), 1, ((-1, 2), (0, -1))),
}
OPS = {"conv": conv, "conv_transpose": conv_transpose}


def lax_form(name, strides, padding):
    strides = (strides, strides) if isinstance(strides, int) else strides
    if name == "conv":
        return lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NUMBERS)
    return lambda x, w: lax.conv_transpose(x, w, strides, padding)


def draw(case, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x, kernel, *_ = CASES[case]
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in (x, kernel))


def penalty(f):
    """The square of the input gradient of a non-linear function of f: what a GAN's gradient penalty differentiates."""
    return lambda x, w: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.tanh(f(x, w))))(x) ** 2)


def derivatives(f, x, w, tx, tw):
    """Name -> value of every derivative that the battery compares."""
    energy = lambda x, w: jnp.sum(jnp.sin(f(x, w)))  # noqa: E731
    gradient = jax.grad(energy, (0, 1))
    return {
        "forward": f(x, w),
        "jvp": jax.jvp(f, (x, w), (tx, tw))[1],
        "vjp": gradient(x, w),
        "jvp of grad (hvp)": jax.jvp(gradient, (x, w), (tx, tw))[1],
        "grad of jvp": jax.grad(lambda x, w: jnp.sum(jnp.cos(jax.jvp(f, (x, w), (tx, tw))[1])), (0, 1))(x, w),
        "grad of penalty": jax.grad(penalty(f), (0, 1))(x, w),
        "jvp of jvp": jax.jvp(lambda x, w: jax.jvp(f, (x, w), (tx, tw))[1], (x, w), (tx, tw))[1],
    }


def assert_close(actual, desired, tolerance):
    def check(a, b):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, rtol=0, atol=tolerance)

    jax.tree.map(check, actual, desired)


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float64") for case in CASES), ("last layer", "float32"), ("stride 2", "float32")]
)
@pytest.mark.parametrize("name", OPS)
def test_derivatives_are_those_of_lax(name, case, dtype):
    strides, padding = CASES[case][2:]
    with jax.enable_x64(dtype == "float64"):
        x, w = draw(case, dtype)
        tx, tw = draw(case, dtype, seed=1)
        ours = lambda x, w: OPS[name](x, w, strides=strides, padding=padding, implementation="matmul")  # noqa: E731
        both = (ours, lax_form(name, strides, padding))
        actual, desired = (jax.jit(lambda *a, f=f: derivatives(f, *a))(x, w, tx, tw) for f in both)
        # second derivatives in float32 sum about ten times as many terms
        assert_close(actual, desired, TOLERANCE[dtype] * (1 if dtype == "float64" else 5))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_oracle(case, implementation):
    strides, padding = CASES[case][2:]
    strides = (strides, strides) if isinstance(strides, int) else strides
    with jax.enable_x64(True):
        x, w = draw(case, "float64")
        pads = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding) if isinstance(padding, str) else padding
        crop = np.maximum(pads, 0)
        inside = np.pad(x, ((0, 0), *crop, (0, 0)))
        (top, bottom), (left, right) = -np.minimum(pads, 0)
        inside = inside[:, top : inside.shape[1] - bottom, left : inside.shape[2] - right]
        desired = reference.conv(inside, np.asarray(w), strides, ((0, 0), (0, 0)))
        actual = conv(x, w, strides=strides, padding=padding, implementation=implementation)
    np.testing.assert_allclose(actual, desired, atol=1e-10)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("strides", "padding", "pads"),
    [
        ((2, 2), "SAME", ((2, 2), (2, 2))),
        ((2, 2), "VALID", ((3, 3), (3, 3))),
        ((3, 1), ((1, 2), (3, 0)), ((1, 2), (3, 0))),
    ],
)
def test_transposed_forward_is_the_oracle(strides, padding, pads, implementation):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, w = jnp.asarray(rng.standard_normal((2, 4, 5, 3))), jnp.asarray(rng.standard_normal((4, 4, 3, 2)))
        actual = conv_transpose(x, w, strides=strides, padding=padding, implementation=implementation)
        desired = reference.conv_transpose(np.asarray(x), np.asarray(w), strides, pads)
    np.testing.assert_allclose(actual, desired, atol=1e-10)


sizes = st.integers(1, 4)
paddings = st.sampled_from(["SAME", "VALID", ((0, 1), (2, 0)), ((1, 1), (0, 3))])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.tuples(sizes, st.integers(1, 6), st.integers(1, 6)), st.tuples(sizes, sizes), sizes, sizes, paddings)
def test_any_shape(image, window, stride, features, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((*image, 2)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((*window, 2, features)), jnp.float32)
    strides = (stride, max(1, 4 - stride))
    for name, op in OPS.items():
        desired = lax_form(name, strides, padding)(x, w)
        assume(0 not in desired.shape)
        actual = op(x, w, strides=strides, padding=padding, implementation="matmul")
        np.testing.assert_allclose(actual, desired, atol=TOLERANCE["float32"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPS)
def test_vmap_over_each_argument(name, implementation):
    x, w = draw("stride 2")
    f = lambda x, w: OPS[name](x, w, strides=2, implementation=implementation)  # noqa: E731
    for axes in ((0, None), (None, 0), (0, 0)):
        args = [a if axis is None else jnp.stack([a, -a, 2 * a]) for a, axis in zip((x, w), axes, strict=True)]
        single = [f(*(a if axis is None else a[i] for a, axis in zip(args, axes, strict=True))) for i in range(3)]
        np.testing.assert_allclose(jax.vmap(f, axes)(*args), jnp.stack(single), atol=TOLERANCE["float32"] * 10)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPS)
def test_inside_scan(name, implementation):
    x, w = draw("stride 2")
    f = lambda x, w: OPS[name](x, w, strides=2, implementation=implementation)  # noqa: E731
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(f(x, w) ** 2)))

    @jax.jit
    def descend(w):
        return lax.scan(lambda w, _: (w - 1e-3 * gradient(w), None), w, None, length=2)[0]

    by_hand = w - 1e-3 * gradient(w)
    by_hand = by_hand - 1e-3 * gradient(by_hand)
    np.testing.assert_allclose(descend(w), by_hand, atol=TOLERANCE["float32"] * 5)


def test_dilation_and_groups_are_those_of_lax():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 7, 7, 4), (3, 3, 2, 6)))
    options = {"kernel_dilation": 2, "feature_group_count": 2}
    desired = lax.conv_general_dilated(
        x, w, (1, 1), "SAME", rhs_dilation=(2, 2), feature_group_count=2, dimension_numbers=NUMBERS
    )
    np.testing.assert_array_equal(conv(x, w, **options), desired)
    with pytest.raises(NotImplementedError, match=r"kernel_dilation.*implementation='lax'"):
        conv(x, w, **options, implementation="matmul")


@pytest.mark.parametrize("name", OPS)
def test_a_gpu_gets_lax_and_a_cpu_products(name):
    x, w = draw("stride 2")
    f = jax.jit(jax.grad(lambda x, w: jnp.sum(OPS[name](x, w, strides=2) ** 2), (0, 1)))
    cuda = export.export(f, platforms=["cuda"])(x, w).mlir_module()
    assert "stablehlo.convolution" in cuda
    assert "dot_general" not in cuda
    cpu = f.lower(x, w).compile().as_text()
    assert " convolution(" not in cpu
    assert "conditional(" not in cpu  # a convolution inside a branch would run 12-18 times slower


@pytest.mark.parametrize(
    ("op", "x", "kernel", "options", "message"),
    [
        (conv, (1, 4, 4, 3), (3, 3, 2, 5), {}, r"x \(1, 4, 4, 3\) has 3 channels, kernel \(3, 3, 2, 5\) takes 2"),
        (conv, (4, 4, 3), (3, 3, 3, 5), {}, r"x of shape \(4, 4, 3\).*\[B, H, W, C\]"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"padding": "same"}, "padding='same': give 'SAME'"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"padding": ((1, 1),)}, "padding=.*two pairs"),
        (conv, (1, 4, 4, 3), (5, 5, 3, 5), {"padding": "VALID"}, r"padding='VALID'.*\(1, 4, 4, 3\).*padding='SAME'"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"strides": 0}, "strides=0: give a positive integer"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"implementation": "fast"}, "implementation='fast'.*'lax', 'matmul'"),
        (conv, (1, 4, 4, 4), (3, 3, 2, 5), {"feature_group_count": 2}, "feature_group_count=2"),
        (conv_transpose, (1, 4, 4, 3), (3, 3, 2, 5), {}, "has 3 channels"),
        (conv_transpose, (1, 1, 1, 3), (3, 3, 3, 5), {"padding": ((0, 0), (0, 0))}, "padding=.*use padding='SAME'"),
    ],
)
def test_bad_input(op, x, kernel, options, message):
    plain = inspect.unwrap(op)  # without the tests' own shape checker, as users call it
    with pytest.raises(ValueError, match=message):
        plain(jnp.zeros(x), jnp.zeros(kernel), **options)


def test_dtypes_must_agree():
    with pytest.raises(ValueError, match=r"x is bfloat16, kernel float32: cast one with \.astype"):
        conv(jnp.zeros((1, 4, 4, 3), jnp.bfloat16), jnp.zeros((3, 3, 3, 5)))
