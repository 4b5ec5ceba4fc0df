"""The first state of adversarial training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxai.gan.state import GanState, init_fn, init_gan_state
from jaxai.train.keys import Keys
from tests.helpers import SHAPE, TinyDiscriminator, TinyGenerator, same_bits

TXS = optax.adam(1e-3), optax.sgd(1e-2, momentum=0.9)
FIRST = (
    jax.jit(init_fn(TinyGenerator(), jnp.zeros((1, 8)))),
    jax.jit(init_fn(TinyDiscriminator(), jnp.zeros((2, *SHAPE)))),
)


def first(seed: int = 0, **options) -> GanState:
    return init_gan_state(Keys(seed), *FIRST, txs=TXS, **({"keep_ema": True} | options))


def test_each_network_gets_its_own_parameters_and_optimiser():
    state = first()
    assert (state.step.dtype, int(state.step)) == (jnp.int32, 0)
    generator = jax.eval_shape(TinyGenerator().init, state.key, jnp.zeros((1, 8)))["params"]
    discriminator = jax.eval_shape(TinyDiscriminator().init, state.key, jnp.zeros((2, *SHAPE)))["params"]
    assert jax.tree.map(jnp.shape, state.generator) == jax.tree.map(jnp.shape, generator)
    assert jax.tree.map(jnp.shape, state.discriminator) == jax.tree.map(jnp.shape, discriminator)
    assert same_bits(state.generator_opt, TXS[0].init(state.generator))
    assert same_bits(state.discriminator_opt, TXS[1].init(state.discriminator))


def test_the_average_starts_as_a_copy():
    """In memory of its own, because a training step takes the state's memory over."""
    state = first()
    assert same_bits(state.ema_params, state.generator)
    pairs = zip(jax.tree.leaves(state.ema_params), jax.tree.leaves(state.generator), strict=True)
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)
    assert first(keep_ema=False).ema_params is None


def test_an_adaptive_augmentation_starts_at_zero():
    assert first().strength is None
    assert float(first(adaptive=True).strength) == 0


def test_the_key_decides():
    assert same_bits(first(), first())
    one, other = first(0), first(1)
    assert not same_bits(one.generator, other.generator)
    assert not same_bits(one.discriminator, other.discriminator)
    assert one.key != other.key


def test_both_networks_and_the_steps_have_keys_of_their_own():
    keys = []

    def note(key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return {}

    state = init_gan_state(Keys(5), note, note, txs=TXS, keep_ema=False)
    keys += [tuple(jax.random.key_data(key).tolist()) for key in (state.key, jax.random.key(5))]
    assert len(set(keys)) == 4


def test_a_state_is_a_frozen_pytree():
    state = first(adaptive=True)
    again = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(state))
    assert isinstance(again, GanState)
    assert same_bits(again, state)
    with pytest.raises(AttributeError):
        state.step = 1
    np.testing.assert_array_equal(jax.jit(lambda state: state.replace(step=state.step + 1))(state).step, 1)
