"""Convolutions against a NumPy oracle and `jax.lax`, in every implementation, to second order in both modes."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import export, lax

from jaxai.ops.conv import conv, conv_transpose
from tests.ops import reference
from tests.ops.oracle import TOLERANCE, assert_close, assert_maps, assert_same_derivatives, assert_scans, compiled, draw

NUMBERS = ("NHWC", "HWIO", "NHWC")
IMPLEMENTATIONS = ["lax", "matmul", None]


class Case(NamedTuple):
    """Shapes of x and kernel, and options."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: int | tuple[int, int] = 1
    padding: Any = "SAME"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


CASES = {  # the articles' shapes made small, and awkward ones
    "last layer": Case((2, 5, 6, 6), (3, 3, 6, 1)),
    "stride 2": Case((2, 6, 6, 3), (4, 4, 3, 5), 2),
    "uneven": Case((2, 5, 7, 2), (3, 2, 2, 5), (3, 2), ((1, 0), (2, 3))),
    "cropping": Case((1, 6, 6, 2), (3, 3, 2, 2), 1, ((-1, 2), (0, -1))),
}
CONV_CASES = CASES | {
    "first layer": Case((2, 6, 5, 1), (3, 3, 1, 5), padding="VALID"),
    "one pixel, stride 2": Case((1, 5, 4, 6), (1, 1, 6, 5), 2, "VALID"),
    "3x3, stride 2": Case((2, 7, 6, 3), (3, 3, 3, 4), 2),
    "cropped, strides that divide": Case((2, 8, 7, 2), (4, 3, 2, 3), (2, 3), ((-1, 2), (1, -1))),
    "groups, stride 2": Case((2, 6, 5, 4), (4, 2, 2, 6), 2, groups=2),
    "dilated": Case((1, 7, 6, 5), (3, 2, 5, 5), dilation=(2, 3)),
    "strided and dilated": Case((2, 8, 7, 2), (3, 3, 2, 3), (2, 3), ((1, 2), (0, 3)), (3, 2)),
    "groups": Case((2, 5, 4, 6), (3, 3, 2, 6), groups=3),
    "groups, strided and dilated": Case((2, 6, 7, 4), (3, 2, 2, 6), (2, 1), "VALID", (2, 2), 2),
    "depthwise": Case((2, 5, 6, 4), (3, 3, 1, 4), groups=4),
    "depthwise, two for each, strided and dilated": Case((2, 7, 6, 3), (2, 3, 1, 6), 2, "SAME", (1, 2), 3),
}
OPS = {"conv": (conv, CONV_CASES), "conv_transpose": (conv_transpose, CASES)}
EVERY = [(name, case) for name, (_, cases) in OPS.items() for case in cases]
FEW = [(name, case) for name, case in EVERY if case in ("stride 2", "groups", "depthwise")]


def ours(name, case, implementation):
    """The op with a case's options."""
    options = {"strides": case.strides, "padding": case.padding, "implementation": implementation}
    if name == "conv":
        options |= {"kernel_dilation": case.dilation, "feature_group_count": case.groups}
    return lambda x, w: OPS[name][0](x, w, **options)


def by_lax(name, case):
    """The same by lax."""
    strides = (case.strides, case.strides) if isinstance(case.strides, int) else case.strides
    if name == "conv_transpose":
        return lambda x, w: lax.conv_transpose(x, w, strides, case.padding)
    options = {"rhs_dilation": case.dilation, "feature_group_count": case.groups, "dimension_numbers": NUMBERS}
    return lambda x, w: lax.conv_general_dilated(x, w, strides, case.padding, **options)


@pytest.mark.parametrize(
    ("name", "case", "dtype"),
    [*((*one, "float64") for one in EVERY), ("conv", "depthwise", "float32")],
)
@pytest.mark.grid(fast=2)
def test_derivatives_are_those_of_lax(name, case, dtype):
    case = OPS[name][1][case]
    # second derivatives in float32 sum about ten times as many terms
    tolerance = TOLERANCE[dtype] * (1 if dtype == "float64" else 5)
    forms = ours(name, case, "matmul"), by_lax(name, case)
    assert_same_derivatives(*forms, (case.x, case.kernel), dtype, tolerance)


@pytest.mark.parametrize("case", CONV_CASES)
def test_forward_is_the_oracle(case):
    case = CONV_CASES[case]
    x_shape, kernel_shape, strides, padding, dilation, groups = case
    strides = (strides, strides) if isinstance(strides, int) else strides
    with jax.enable_x64(True):
        x, w = draw(x_shape, kernel_shape, dtype="float64")
        window = [(k - 1) * d + 1 for k, d in zip(kernel_shape[:2], dilation, strict=True)]
        pads = lax.padtype_to_pads(x_shape[1:3], window, strides, padding) if isinstance(padding, str) else padding
        inside = np.pad(x, ((0, 0), *np.maximum(pads, 0), (0, 0)))
        (top, bottom), (left, right) = -np.minimum(pads, 0)
        inside = inside[:, top : inside.shape[1] - bottom, left : inside.shape[2] - right]
        desired = reference.conv(inside, np.asarray(w), strides, ((0, 0), (0, 0)), dilation, groups)
        every = compiled(lambda *a: [ours("conv", case, i)(*a) for i in IMPLEMENTATIONS])
        for actual in every(x, w):
            assert_close(actual, desired, 1e-10)


@pytest.mark.parametrize(
    ("strides", "padding", "pads"),
    [
        ((2, 2), "SAME", ((2, 2), (2, 2))),
        ((2, 2), "VALID", ((3, 3), (3, 3))),
        ((3, 1), ((1, 2), (3, 0)), ((1, 2), (3, 0))),
    ],
)
def test_transposed_forward_is_the_oracle(strides, padding, pads):
    with jax.enable_x64(True):
        x, w = draw((2, 4, 5, 3), (4, 4, 3, 2), dtype="float64")
        case = Case(x.shape, w.shape, strides, padding)
        desired = reference.conv_transpose(np.asarray(x), np.asarray(w), strides, pads)
        every = compiled(lambda *a: [ours("conv_transpose", case, i)(*a) for i in IMPLEMENTATIONS])
        for actual in every(x, w):
            assert_close(actual, desired, 1e-10)


sizes = st.integers(1, 4)
paddings = st.sampled_from(["SAME", "VALID", ((0, 1), (2, 0)), ((1, 1), (0, 3))])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.tuples(sizes, st.integers(1, 6), st.integers(1, 6)), st.tuples(sizes, sizes), sizes, sizes, paddings)
def test_any_shape(image, window, stride, features, padding):
    case = Case((*image, 2), (*window, 2, features), (stride, max(1, 4 - stride)), padding)
    for name in OPS:
        assert_is_lax(name, case)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.tuples(sizes, sizes), sizes, paddings)
def test_any_group(groups, inputs, outputs, dilation, stride, padding):
    shapes = (2, 6, 5, groups * inputs), (2, 3, inputs, groups * outputs)
    assert_is_lax("conv", Case(*shapes, stride, padding, dilation, groups))


def assert_is_lax(name, case):
    """Where that has pixels left."""
    x, w = draw(case.x, case.kernel)
    theirs = by_lax(name, case)
    assume(0 not in jax.eval_shape(theirs, x, w).shape)
    both = compiled(lambda x, w: (ours(name, case, "matmul")(x, w), theirs(x, w)))
    assert_close(*both(x, w), TOLERANCE["float32"])


@pytest.mark.parametrize(("name", "case"), FEW)
def test_vmap_over_each_argument(name, case):
    case = OPS[name][1][case]
    choices = [(0, None), (None, 0), (0, 0)]
    assert_maps(ours(name, case, None), draw(case.x, case.kernel), choices, TOLERANCE["float32"])


@pytest.mark.parametrize(("name", "case"), FEW)
def test_inside_scan(name, case):
    case = OPS[name][1][case]
    x, w = draw(case.x, case.kernel)
    f = ours(name, case, None)
    assert_scans(lambda w: f(x, w), w, TOLERANCE["float32"])


@pytest.mark.parametrize("kernel", [(3, 3, 3, 4), (3, 3, 1, 6), (3, 3, 6, 3)])
def test_bfloat16_is_rounded_once(kernel):
    x, w = draw((2, 5, 5, 6), kernel, dtype="bfloat16")
    options = {"feature_group_count": 6 // kernel[2], "implementation": "matmul"}
    exact = compiled(lambda x, w: conv(x.astype(jnp.float32), w.astype(jnp.float32), **options))(x, w)
    y = conv(x, w, **options)  # compiled whole, it could keep more bits in between
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)  # half a unit of eight bits


@pytest.mark.parametrize(("name", "case"), FEW)
def test_a_gpu_gets_lax_and_a_cpu_products(name, case):
    case = OPS[name][1][case]
    x, w = draw(case.x, case.kernel)
    op = ours(name, case, None)
    f = jax.jit(jax.grad(lambda x, w: jnp.sum(op(x, w) ** 2), (0, 1)))
    cuda = export.export(f, platforms=["cuda"])(x, w).mlir_module()
    assert "stablehlo.convolution" in cuda
    assert "dot_general" not in cuda
    cpu = f.lower(x, w).compile().as_text()
    assert " convolution(" not in cpu
    assert "conditional(" not in cpu  # a convolution inside a branch would run 12-18 times slower


def test_dilation_alone_stays_with_lax():
    case = CONV_CASES["dilated"]
    program = compiled(ours("conv", case, None)).lower(*draw(case.x, case.kernel)).compile()
    assert " convolution(" in program.as_text()


@pytest.mark.parametrize(
    ("op", "x", "kernel", "options", "message"),
    [
        (conv, (1, 4, 4, 3), (3, 3, 2, 5), {}, r"x \(1, 4, 4, 3\) has 3 channels, kernel \(3, 3, 2, 5\) takes 2"),
        (conv, (4, 4, 3), (3, 3, 3, 5), {}, r"x of shape \(4, 4, 3\).*\[B, H, W, C\]"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"padding": "same"}, "padding='same': give 'SAME'"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"padding": ((1, 1),)}, "padding=.*two pairs"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"padding": 1}, "padding=1: .*two pairs"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"padding": (1, 1)}, "padding=.*two pairs"),
        (conv, (1, 4, 4, 3), (5, 5, 3, 5), {"padding": "VALID"}, r"padding='VALID'.*\(1, 4, 4, 3\).*padding='SAME'"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"strides": 0}, "strides=0: give a positive integer"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"implementation": "fast"}, "implementation='fast'.*'lax', 'matmul'"),
        (conv, (1, 4, 4, 4), (3, 3, 2, 5), {"feature_group_count": 2}, "feature_group_count=2"),
        (conv, (1, 4, 4, 4), (3, 3, 1, 4), {"feature_group_count": 0}, "feature_group_count=0"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"kernel_dilation": (1, 2, 1)}, "kernel_dilation=.*pair"),
        (conv, (1, 4, 4, 3), (3, 3, 3, 5), {"kernel_dilation": 2, "padding": "VALID"}, r"padding='VALID'.*\[5, 5\]"),
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
