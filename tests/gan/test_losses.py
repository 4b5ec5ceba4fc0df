"""Losses: values, gradients by finite differences, fixed points, invariances."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxai.gan.losses import LOSSES, above_fake
from tests.helpers import generator_loss

logits = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=4).map(lambda x: jnp.asarray(x, "float32"))


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def as_published(name, real, fake):
    """What discriminator and generator minimise, written out with probabilities and means."""
    p, q = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    classifying = -np.log(p) - np.log(1 - q)
    real_first, fake_first = real - fake.mean(), fake - real.mean()
    return {
        "saturating": (classifying, np.log(1 - q)),
        "non_saturating": (classifying, -np.log(q)),
        "least_squares": ((real - 1) ** 2 / 2 + fake**2 / 2, (fake - 1) ** 2 / 2),
        "hinge": (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake), -fake),
        "wasserstein": (fake - real, -fake),
        "relativistic": (-log_sigmoid(real - fake), -log_sigmoid(fake - real)),
        "relativistic_average": (
            -log_sigmoid(real_first) - log_sigmoid(-fake_first),
            -log_sigmoid(fake_first) - log_sigmoid(-real_first),
        ),
    }[name]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_published_ones(name):
    loss, real, fake = LOSSES[name], np.array([0.3, -2.0, 0.1]), np.array([-0.7, 1.5, 0.4])
    args = jnp.float32(real), jnp.float32(fake)
    found = loss.discriminator(*args), generator_loss(loss, *args)
    np.testing.assert_allclose(found, as_published(name, real, fake), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    loss = LOSSES[name]
    with jax.enable_x64(True):
        real, fake = jnp.array([0.3, -2.0, 0.1]), jnp.array([-0.7, 1.5, 0.4])
        for function in (loss.discriminator, partial(generator_loss, loss)):
            check_grads(lambda *x, f=function: f(*map(jnp.asarray, x)).sum(), (real, fake), order=2, modes=["rev"])


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.margin is not above_fake])
def test_a_discriminator_that_cannot_tell_is_at_rest(name):
    """With equal logits everywhere, the loss has no slope towards other equal logits at the undecided one alone."""
    loss = LOSSES[name]

    @jax.jit
    def slope(logit):
        equal = jnp.full(3, logit)
        return jax.grad(lambda shift: loss.discriminator(equal + shift, equal + shift).sum())(0.0)

    undecided = -float(loss.margin(jnp.zeros(1), jnp.zeros(1))[0])
    assert slope(undecided) == pytest.approx(0.0, abs=1e-6)
    assert float(slope(undecided + 2)) > 0.1
    assert float(slope(undecided - 2)) < -0.1


@pytest.mark.parametrize("name", LOSSES)
def test_margins_are_positive_where_real_is_taken_for_real(name):
    loss = LOSSES[name]
    real, fake = jnp.array([3.0, -2.0]), jnp.array([-3.0, 2.0])
    np.testing.assert_array_equal(jnp.sign(loss.margin(real, fake)), [1.0, -1.0])
    if loss.margin is above_fake:
        np.testing.assert_allclose(loss.margin(real + 5, fake + 5), loss.margin(real, fake))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.relativistic])
@given(logits, st.floats(-20, 20, width=32))
def test_relativistic_losses_do_not_change_when_the_discriminator_shifts(name, real, shift):
    loss, fake = LOSSES[name], -real / 2
    for function in (loss.discriminator, loss.generator):
        # float32 rounds logits of up to 70 to 4e-6, each
        np.testing.assert_allclose(function(real + shift, fake + shift), function(real, fake), rtol=1e-5, atol=2e-5)


@partial(jax.jit, static_argnums=0)
def values_and_gradients(name, real):
    """The discriminator's and the generator's, with fake logits opposite to the real ones."""
    functions = LOSSES[name].discriminator, partial(generator_loss, LOSSES[name])
    return [jax.value_and_grad(lambda x, f=function: f(x, -x).sum())(real) for function in functions]


@pytest.mark.parametrize("name", LOSSES)
@given(logits)
@pytest.mark.grid(fast=1)
def test_losses_and_gradients_are_finite_at_any_logit(name, real):
    for scale in (1.0, 1e4):
        for value, grad in values_and_gradients(name, real * scale):
            assert np.isfinite(value)
            assert np.isfinite(grad).all()
