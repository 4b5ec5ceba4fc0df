"""The moving average: its half-life in images, its ramp, and its update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxai.train.ema import ema_decay, update_ema


def test_average_forgets_half_after_its_half_life():
    step = 10**6 // 32
    assert ema_decay(step, 32, 3200.0) ** 100 == pytest.approx(0.5, rel=1e-5)
    assert ema_decay(0, 32, 3200.0) == pytest.approx(0.5**20)  # ramp: half-life of 5 % of the images seen


def test_decay_follows_the_ramp_then_the_half_life():
    """Written out: 0.5 ** (batch / min(half-life, 5 % of the images seen))."""
    for step in (0, 1, 10, 1000, 10**6):
        half_life = min(500.0, 0.05 * (step + 1) * 16)
        assert float(ema_decay(step, 16, 500.0)) == pytest.approx(0.5 ** (16 / half_life), rel=1e-5)


@given(batch_size=st.integers(1, 64), half_life=st.floats(1.0, 1e5))
def test_decay_grows_to_the_one_of_the_half_life(batch_size, half_life):
    decays = np.array([float(ema_decay(step, batch_size, half_life)) for step in (0, 10, 1000, 10**6)])
    assert (np.diff(decays) >= 0).all()
    assert ((decays >= 0) & (decays <= 1)).all()


def test_a_larger_batch_forgets_as_much_for_each_image():
    one, two = ema_decay(10**6, 32, 5000.0), ema_decay(10**6, 64, 5000.0)
    np.testing.assert_allclose(one**2, two, rtol=1e-6)


@given(decay=st.floats(0, 1, width=32), seed=st.integers(0, 99))
def test_an_update_lies_between_average_and_parameters(decay, seed):
    rng = np.random.default_rng(seed)
    average, params = (
        {"a": rng.normal(size=3).astype("f4"), "b": [rng.normal(size=(2, 2)).astype("f4")]} for _ in "12"
    )
    new = update_ema(average, params, decay)
    expected = jax.tree.map(lambda a, p: np.float64(decay) * a + (1 - np.float64(decay)) * p, average, params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), new, expected)  # float32


def test_the_ends_of_an_update():
    average, params = {"a": jnp.zeros(3)}, {"a": jnp.ones(3)}
    np.testing.assert_array_equal(update_ema(average, params, 0.0)["a"], params["a"])
    np.testing.assert_array_equal(update_ema(average, params, 1.0)["a"], average["a"])
    np.testing.assert_array_equal(update_ema(params, params, 0.3)["a"], params["a"])  # a constant stays, exactly
