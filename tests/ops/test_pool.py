"""Pooling against a NumPy oracle, `flax.linen` and `lax.reduce_window`, in every implementation."""

import inspect
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

from jaxai.ops.pool import avg_pool, max_pool
from tests.ops import reference
from tests.ops.oracle import assert_close, assert_maps, assert_same_derivatives, assert_scans, compiled, draw, penalty

OPS = {"max": (max_pool, nn.max_pool, reference.max_pool), "avg": (avg_pool, nn.avg_pool, reference.avg_pool)}
IMPLEMENTATIONS = ["lax", "slices", None]
CASES = {  # window, strides, padding
    "halve": ((2, 2), (2, 2), "VALID"),
    "overlap": ((3, 3), (2, 2), "SAME"),
    "overlap, no stride": ((2, 3), (1, 1), ((1, 0), (1, 2))),
    "gaps": ((3, 2), (1, 3), ((1, 0), (0, 1))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPS)
def test_forward_is_flax_and_the_oracle(name, case):
    (op, flax_op, oracle), (window, strides, padding), (x,) = OPS[name], CASES[case], draw((2, 6, 7, 3))
    pads = lax.padtype_to_pads(x.shape[1:3], window, strides, padding) if isinstance(padding, str) else padding
    desired = oracle(np.asarray(x), window, strides, tuple(pads))
    options = {"strides": strides, "padding": padding}
    forms = [*(partial(op, implementation=i) for i in IMPLEMENTATIONS), flax_op]
    for actual in compiled(lambda x: [form(x, window, **options) for form in forms])(x):
        assert_close(actual, desired, 1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPS)
def test_derivatives_are_those_of_lax(name, case):
    op, (window, strides, padding) = OPS[name][0], CASES[case]
    forms = [
        lambda x, i=i: op(x, window, strides=strides, padding=padding, implementation=i) for i in ("slices", "lax")
    ]
    assert_same_derivatives(*forms, [(2, 5, 6, 2)], "float64", 1e-10)


@pytest.mark.parametrize("name", OPS)
def test_second_derivatives_are_differences(name):
    op = OPS[name][0]
    squared = compiled(jax.value_and_grad(penalty(lambda x: op(x, 3, strides=2, padding="SAME"))))
    with jax.enable_x64(True):
        x, direction = draw((1, 4, 4, 2), (1, 4, 4, 2), dtype="float64")
        step = 1e-6 * direction
        difference = squared(x + step)[0] - squared(x - step)[0]
        # central difference: error of order step squared over rounding
        np.testing.assert_allclose(jnp.vdot(squared(x)[1], step) * 2, difference, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_first_of_equal_values_takes_the_gradient(implementation):
    x = jnp.ones((1, 2, 4, 1))
    gradient = compiled(jax.grad(lambda x: max_pool(x, 2, strides=2, implementation=implementation).sum()))(x)
    np.testing.assert_array_equal(np.asarray(gradient)[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("name", OPS)
def test_nan_is_not_hidden(name):
    x = jnp.where(jnp.eye(4, dtype=bool), jnp.nan, 0.0).reshape(4, 2, 2, 1)  # in each place of a window
    for y in compiled(lambda x: [OPS[name][0](x, 2, implementation=i) for i in IMPLEMENTATIONS])(x):
        assert jnp.isnan(y).all()


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(3, 7), st.integers(1, 3), st.integers(1, 4), st.sampled_from(["SAME", "VALID", ((1, 0), (0, 2))]))
def test_any_shape(size, window, stride, padding):
    (x,), options = draw((2, size, 10 - size, 2)), {"strides": (stride, stride), "padding": padding}
    ours = lambda x: [op(x, window, **options, implementation="slices") for op, *_ in OPS.values()]  # noqa: E731
    theirs = lambda x: [flax_op(x, (window, window), **options) for _, flax_op, _ in OPS.values()]  # noqa: E731
    for actual, desired in zip(*compiled(lambda x: (ours(x), theirs(x)))(x), strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=1e-6)  # infinite where a window sees no pixel


@pytest.mark.parametrize("name", OPS)
def test_vmap_and_scan(name):
    f = lambda x: OPS[name][0](x, 3, strides=2, padding="SAME")  # noqa: E731
    arguments = draw((1, 4, 4, 2))
    assert_maps(f, arguments, [(0,)], 1e-6)
    assert_scans(f, *arguments, 1e-6)


@pytest.mark.parametrize("name", OPS)
def test_a_gpu_gets_lax(name):
    f = jax.jit(jax.grad(lambda x: jnp.sum(OPS[name][0](x, 2, strides=2) ** 2)))
    (x,) = draw((2, 6, 7, 3))
    cuda = export.export(f, platforms=["cuda"])(x).mlir_module()
    assert "stablehlo.reduce_window" in cuda
    cpu = f.lower(x).compile().as_text()
    assert "reduce-window(" not in cpu
    assert "select-and-scatter(" not in cpu


@pytest.mark.parametrize(
    ("x", "window", "options", "message"),
    [
        ((4, 4, 3), 2, {}, r"x has shape \(4, 4, 3\): give it as \[B, H, W, C\]"),
        ((1, 4, 4, 3), 5, {}, r"padding='VALID'.*\(1, 4, 4, 3\).*smaller window"),
        ((1, 4, 4, 3), 0, {}, "window=0: give a positive integer"),
        ((1, 4, 4, 3), 2, {"strides": (1, -1)}, "strides=.*positive integer"),
        ((1, 4, 4, 3), 2, {"implementation": "matmul"}, "implementation='matmul'.*'lax', 'slices'"),
    ],
)
def test_bad_input(x, window, options, message):
    for op in (max_pool, avg_pool):
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(op)(jnp.zeros(x), window, **options)
