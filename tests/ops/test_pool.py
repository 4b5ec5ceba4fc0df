"""Pooling against a NumPy oracle, `flax.linen` and `lax.reduce_window`, in every implementation."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

from jaxai.ops import reference
from jaxai.ops.pool import avg_pool, max_pool

OPS = {"max": (max_pool, nn.max_pool, reference.max_pool), "avg": (avg_pool, nn.avg_pool, reference.avg_pool)}
IMPLEMENTATIONS = ["lax", "slices", None]
CASES = {  # window, strides, padding
    "halve": ((2, 2), (2, 2), "VALID"),
    "overlap": ((3, 3), (2, 2), "SAME"),
    "pairs": ((3, 2), (1, 3), ((1, 0), (0, 1))),
}


def images(dtype="float32", seed=0, shape=(2, 6, 7, 3)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPS)
def test_forward_is_flax_and_the_oracle(name, case, implementation):
    (op, flax_op, oracle), (window, strides, padding), x = OPS[name], CASES[case], images()
    actual = op(x, window, strides=strides, padding=padding, implementation=implementation)
    np.testing.assert_allclose(actual, flax_op(x, window, strides=strides, padding=padding), rtol=1e-6, atol=1e-6)
    pads = lax.padtype_to_pads(x.shape[1:3], window, strides, padding) if isinstance(padding, str) else padding
    np.testing.assert_allclose(actual, oracle(np.asarray(x), window, strides, tuple(pads)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPS)
def test_derivatives_are_those_of_lax(name, case):
    (op, *_), (window, strides, padding) = OPS[name], CASES[case]

    def derivatives(x, t, implementation):
        f = lambda x: op(x, window, strides=strides, padding=padding, implementation=implementation)  # noqa: E731
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))
        return f(x), jax.jvp(f, (x,), (t,))[1], gradient(x), jax.jvp(gradient, (x,), (t,))[1]

    with jax.enable_x64(True):
        x, t = images("float64"), images("float64", seed=1)
        actual, desired = (jax.jit(derivatives, static_argnums=2)(x, t, i) for i in ("slices", "lax"))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), actual, desired)


@pytest.mark.parametrize("name", OPS)
def test_grad_of_a_gradient_penalty(name):
    op = OPS[name][0]
    with jax.enable_x64(True):
        x = images("float64", shape=(1, 4, 4, 2))
        penalty = lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(op(x, 2, strides=2))))(x) ** 2)  # noqa: E731
        by_reverse, by_forward = jax.grad(penalty)(x), jax.jacfwd(penalty)(x)
        step = 1e-6 * images("float64", seed=1, shape=x.shape)
        np.testing.assert_allclose(by_reverse, by_forward, atol=1e-10)
        # central difference: error of order step squared over rounding
        np.testing.assert_allclose(jnp.vdot(by_reverse, step) * 2, penalty(x + step) - penalty(x - step), atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_first_of_equal_values_takes_the_gradient(implementation):
    x = jnp.ones((1, 2, 4, 1))
    gradient = jax.grad(lambda x: max_pool(x, 2, strides=2, implementation=implementation).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPS)
def test_nan_is_not_hidden(name, implementation):
    for place in range(4):
        x = images(shape=(1, 2, 2, 1)).reshape(-1).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(OPS[name][0](x, 2, implementation=implementation)).all()


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(3, 7), st.integers(1, 3), st.integers(1, 4), st.sampled_from(["SAME", "VALID", ((1, 0), (0, 2))]))
def test_any_shape(size, window, stride, padding):
    x = images(shape=(2, size, 10 - size, 2))
    for op, flax_op, _ in OPS.values():
        actual = op(x, window, strides=stride, padding=padding, implementation="slices")
        desired = flax_op(x, (window, window), strides=(stride, stride), padding=padding)
        np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPS)
def test_vmap_and_scan(name, implementation):
    f = lambda x: OPS[name][0](x, 2, strides=2, implementation=implementation)  # noqa: E731
    x = images(shape=(3, 1, 4, 4, 2))
    each = jnp.stack([f(one) for one in x])
    np.testing.assert_allclose(jax.vmap(f)(x), each, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda x: lax.scan(lambda c, one: (c, f(one)), 0.0, x)[1])(x), each, rtol=1e-6)


@pytest.mark.parametrize("name", OPS)
def test_a_gpu_gets_lax(name):
    f = jax.jit(jax.grad(lambda x: jnp.sum(OPS[name][0](x, 2, strides=2) ** 2)))
    cuda = export.export(f, platforms=["cuda"])(images()).mlir_module()
    assert "stablehlo.reduce_window" in cuda
    cpu = f.lower(images()).compile().as_text()
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
