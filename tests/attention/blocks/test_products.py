"""The three products of a block against einsum, with their derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.attention.blocks.products import FACTORS, contract
from tests.attention.oracle import TOLERANCE, assert_close

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
    tangents = [jnp.cos(x) for x in arrays]

    def everything(f):
        value = lambda *arrays: jnp.sin(f(*arrays)).sum()  # noqa: E731
        gradient = jax.grad(value, (0, 1))
        return f(*arrays), jax.jvp(f, arrays, tangents), jax.jvp(gradient, arrays, tangents)

    actual, desired = (everything(functools.partial(f, result)) for f in (product, by_einsum))
    assert_close(actual, desired, 10 * TOLERANCE)


@pytest.mark.parametrize("result", FACTORS)
@pytest.mark.parametrize("axes", [(0, 0), (None, 1), (2, None)])
def test_vmap(result, axes):
    arrays = [
        x if axis is None else jnp.stack([x, 2 * x, x - 1], axis) for x, axis in zip(factors(result), axes, strict=True)
    ]
    actual, desired = (jax.vmap(functools.partial(f, result), in_axes=axes)(*arrays) for f in (product, by_einsum))
    assert_close(actual, desired, 10 * TOLERANCE)


def test_derivatives_of_guarded_products_take_nan_for_zero():
    x, y = factors("ts")
    x = x.at[0, 0, 0].set(jnp.nan)

    def value(guarded, y):
        return product("ts", x, y, guarded)[:, 1:].sum()

    assert np.isfinite(jax.grad(functools.partial(value, True))(y)).all()
    assert np.isnan(jax.grad(functools.partial(value, False))(y)[0, 0]).all()
