"""Dropout by a hash: its share, its scale, its independence of everything but key and place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.ops.dropout import dropout
from tests.ops.oracle import compiled


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_share_and_scale(rate, key):
    x = jnp.full((64, 33, 40), 2.0)
    y = np.asarray(compiled(lambda x: dropout(x, rate, key))(x))
    np.testing.assert_allclose(np.unique(y), [0, 2 / (1 - rate)], rtol=1e-6)
    deviation = (rate * (1 - rate) / x.size) ** 0.5
    assert abs((y == 0).mean() - rate) < 4 * deviation
    for axis in range(3):  # no row, column or plane has a share of its own
        others = tuple(a for a in range(3) if a != axis)
        shares = (y == 0).mean(others)
        assert np.abs(shares - rate).max() < 5 * deviation * x.shape[axis] ** 0.5


def test_neighbours_and_keys_are_independent(key):
    drop = compiled(lambda key: dropout(jnp.ones((512, 512)), 0.5, key))
    masks = [np.asarray(drop(k)) / 2 - 0.5 for k in jax.random.split(key, 3)]
    pairs = [(masks[0][:, 1:], masks[0][:, :-1]), (masks[0][1:], masks[0][:-1]), (masks[0], masks[1])]
    for a, b in [*pairs, (masks[1], masks[2])]:
        assert abs((a * b).mean() * 4) < 5 / a.size**0.5


def test_the_gradient_has_the_same_mask(key):
    @compiled
    def both(x):
        y, pull = jax.vjp(lambda x: dropout(x, 0.4, key), x)
        return y, *pull(jnp.ones_like(x))

    y, gradient = both(np.random.default_rng(0).normal(size=(7, 5)))
    np.testing.assert_array_equal(gradient != 0, y != 0)


def test_dtype_shape_and_rate(key):
    assert dropout(jnp.ones((), jnp.bfloat16), 0.5, key).dtype == jnp.bfloat16
    np.testing.assert_array_equal(dropout(jnp.ones((3, 2)), 0.0, key), np.ones((3, 2)))
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="rate="):
            dropout(jnp.ones(3), rate, key)
