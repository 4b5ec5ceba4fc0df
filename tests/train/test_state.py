"""The state of supervised training: a pytree of data alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxai.train.compiled_step import float_leaves
from jaxai.train.state import TrainState
from jaxai.train.supervised import init_state
from tests.helpers import same_bits


@pytest.fixture
def state(key) -> TrainState:
    params = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    return init_state(params, optax.adam(1e-3), key, keep_ema=True, carry={"h": jnp.zeros(4)})


def test_a_state_is_a_pytree_of_arrays(state):
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert same_bits(jax.tree.unflatten(structure, leaves), state)
    assert isinstance(jax.tree.unflatten(structure, leaves), TrainState)
    assert {"params/kernel", "ema_params/bias", "carry/h"} <= float_leaves(state).keys()
    assert not {"step", "key"} & float_leaves(state).keys()


def test_without_average_and_carry_there_are_no_leaves_of_them(state):
    less = state.replace(ema_params=None, carry=None)
    assert len(jax.tree.leaves(less)) == len(jax.tree.leaves(state)) - 3
    assert TrainState(0, {}, None, (), None).carry is None


def test_a_state_is_frozen_and_replaced(state):
    with pytest.raises(AttributeError):
        state.step = 3
    later = state.replace(step=state.step + 1)
    assert (int(state.step), int(later.step)) == (0, 1)
    assert same_bits(later.params, state.params)


def test_a_state_goes_through_jit_and_vmap(state):
    doubled = jax.jit(lambda state: state.replace(params=jax.tree.map(lambda x: 2 * x, state.params)))(state)
    np.testing.assert_array_equal(doubled.params["kernel"], 2 * state.params["kernel"])
    assert same_bits(doubled.opt_state, state.opt_state)
    assert doubled.key == state.key
    several = jax.vmap(lambda key: state.replace(key=key))(jax.random.split(state.key, 3))
    assert several.params["bias"].shape == (3, 3)
    assert several.key.shape == (3,)
