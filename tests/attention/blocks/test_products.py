"""The three products of a block against einsum, with their derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.attention.blocks.products import FACTORS, contract
from tests.attention.oracle import TOLERANCE, assert_close, compiled

SIZES = {"t": 5, "h": 3, "s": 4}


def factors(result):
    rng = np.random.default_rng(0)
    shapes = [(2, *(SIZES[axis] for axis in axes)) for axes in FACTORS[result]]
    return [jnp.asarray(rng.standard_normal(shape), "float32") for shape in shapes]


def product(result, x, y, guarded=False):
    return contract(result, x, y, None, x.dtype, guarded)


def by_einsum(result, x, y):
    first, second = FACTORS[result]
    return jnp.einsum(f"b{first},b{second}->b{result}", x, y, precision="highest")


@pytest.mark.parametrize("result", FACTORS)
def test_products_and_derivatives_equal_einsum(result):
    arrays = factors(result)
    tangents = [np.cos(x) for x in arrays]

    def everything(f, arrays):
        value = lambda *arrays: jnp.sin(f(*arrays)).sum()  # noqa: E731
        gradient = jax.grad(value, (0, 1))
        return f(*arrays), jax.jvp(f, arrays, tangents), jax.jvp(gradient, arrays, tangents)

    functions = [functools.partial(f, result) for f in (product, by_einsum)]
    actual, desired = (compiled(functools.partial(everything, f))(arrays) for f in functions)
    assert_close(actual, desired, 10 * TOLERANCE)


@pytest.mark.parametrize("result", FACTORS)
@pytest.mark.parametrize("axes", [(0, 0), (None, 1), (2, None)])
def test_vmap(result, axes):
    arrays = [
        x if axis is None else np.stack([x, 2 * x, x - 1], axis)
        for x, axis in zip(map(np.asarray, factors(result)), axes, strict=True)
    ]
    functions = [functools.partial(f, result) for f in (product, by_einsum)]
    actual, desired = (compiled(jax.vmap(f, in_axes=axes))(*arrays) for f in functions)
    assert_close(actual, desired, 10 * TOLERANCE)


def test_derivatives_of_guarded_products_take_nan_for_zero():
    x, y = factors("ts")
    x = x.at[0, 0, 0].set(jnp.nan)

    def value(guarded, y):
        return product("ts", x, y, guarded)[:, 1:].sum()

    guarded, plain = (np.asarray(compiled(jax.grad(functools.partial(value, x)))(y)) for x in (True, False))
    assert np.isfinite(guarded).all()
    assert np.isnan(plain[0, 0]).all()
