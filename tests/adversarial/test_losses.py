"""Losses and penalties: values, gradients by finite differences, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxai.adversarial.losses import LOSSES
from jaxai.adversarial.penalties import logits_and_squared_gradients

logits = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=4).map(lambda x: jnp.asarray(x, "float32"))


def generator_loss(loss, real, fake):
    return loss.generator(real, fake) if loss.relativistic else loss.generator(fake)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_log_sigmoids(name):
    loss, real, fake = LOSSES[name], np.array([0.3, -2.0]), np.array([-0.7, 1.5])

    def log_sigmoid(x):
        return -np.log1p(np.exp(-x))

    if loss.relativistic:
        wanted = -log_sigmoid(real - fake), -log_sigmoid(fake - real)
    else:
        wanted = -log_sigmoid(real) - log_sigmoid(-fake), -log_sigmoid(fake)
    args = jnp.float32(real), jnp.float32(fake)
    np.testing.assert_allclose((loss.discriminator(*args), generator_loss(loss, *args)), wanted, rtol=1e-6)


@given(logits, st.floats(-20, 20, width=32))
def test_relativistic_losses_do_not_change_when_the_discriminator_shifts(real, shift):
    loss, fake = LOSSES["relativistic"], -real / 2
    for function in (loss.discriminator, loss.generator):
        # float32 rounds logits of up to 70 to 4e-6, each
        np.testing.assert_allclose(function(real + shift, fake + shift), function(real, fake), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", LOSSES)
@given(logits)
def test_losses_and_gradients_are_finite_at_any_logit(name, real):
    loss = LOSSES[name]
    for scale in (1.0, 1e4):
        value, grad = jax.value_and_grad(lambda x: loss.discriminator(x, -x).sum())(real * scale)
        assert jnp.isfinite(value)
        assert jnp.isfinite(grad).all()


def test_squared_gradients_of_a_quadratic_form():
    weights = jnp.arange(1.0, 5.0).reshape(2, 2, 1)

    def discriminate(images):
        return 0.5 * (weights[None] * images**2).sum((1, 2, 3))

    images = jax.random.normal(jax.random.key(1), (3, 2, 2, 1))
    values, squares = logits_and_squared_gradients(discriminate, images)
    np.testing.assert_allclose(values, discriminate(images), rtol=1e-6)
    np.testing.assert_allclose(squares, ((weights[None] * images) ** 2).sum((1, 2, 3)), rtol=1e-6)
