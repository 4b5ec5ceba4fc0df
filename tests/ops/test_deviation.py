"""Minibatch deviation: the number itself, whom it compares, and gradients where examples are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.ops.deviation import minibatch_deviation


@pytest.mark.parametrize("space", [(), (2, 3)])
def test_deviation_of_every_group(space, key):
    x = jax.random.normal(key, (16, *space, 5))
    found = minibatch_deviation(x, 4)
    np.testing.assert_array_equal(found[..., :-1], x)
    for row in range(16):
        group = np.asarray(x)[row // 8 * 8 + row % 2 : row // 8 * 8 + 8 : 2]
        np.testing.assert_allclose(found[row, ..., -1], np.full(space, group.std(0).mean()), rtol=1e-5)


def test_real_examples_say_nothing_of_generated_ones(key):
    x = jax.random.normal(key, (8, 3))
    other = x.at[1::2].set(0.0)
    np.testing.assert_array_equal(minibatch_deviation(x)[::2], minibatch_deviation(other)[::2])


def test_gradients_are_finite_where_all_are_equal():
    grad = jax.grad(lambda x: minibatch_deviation(x).sum())(jnp.ones((8, 3)))
    np.testing.assert_array_equal(grad, np.ones((8, 3)))


def test_small_batches_are_one_group_and_odd_ones_an_error():
    assert minibatch_deviation(jnp.ones((2, 3)), 4).shape == (2, 4)
    with pytest.raises(ValueError, match="the batch must be a multiple of 8"):
        minibatch_deviation(jnp.ones((12, 3)), 4)
    with pytest.raises(ValueError, match="group=0: give at least 1"):
        minibatch_deviation(jnp.ones((12, 3)), 0)
