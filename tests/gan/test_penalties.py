"""Penalties: closed forms on discriminators whose gradients are known, and against finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from jaxai.gan.penalties import PENALTIES, consistency, pairs, split_pairs, squared_gradients

WEIGHTS = np.arange(1.0, 5.0, dtype=np.float32).reshape(2, 2, 1)
KEY = jax.random.key(0)


def linear(images):
    return (WEIGHTS[None] * images).sum((1, 2, 3))


def quadratic(images):
    return 0.5 * (WEIGHTS[None] * images**2).sum((1, 2, 3))


def jitted(name):
    """The penalty as one program for each discriminator."""
    return jax.jit(PENALTIES[name], static_argnums=0)


@pytest.fixture
def real_and_fake():
    return tuple(np.random.default_rng(1).standard_normal((2, 3, 2, 2, 1), np.float32))


def test_squared_gradients_of_a_quadratic_form(real_and_fake):
    images, _ = real_and_fake
    wanted = ((WEIGHTS[None] * images) ** 2).sum((1, 2, 3))
    found = jax.jit(squared_gradients, static_argnums=0)
    np.testing.assert_allclose(found(quadratic, images), wanted, rtol=1e-6)
    points = images.reshape(3, 4)
    np.testing.assert_allclose(found(lambda x: quadratic(x.reshape(-1, 2, 2, 1)), points), wanted, rtol=1e-6)


def test_r1_and_r2_are_half_the_squared_gradients(real_and_fake):
    squared = jax.jit(squared_gradients, static_argnums=0)
    real, fake = (0.5 * np.asarray(squared(quadratic, x)) for x in real_and_fake)
    for name, wanted in {"r1": real, "r2": fake, "r1_r2": real + fake}.items():
        np.testing.assert_allclose(jitted(name)(quadratic, *real_and_fake, KEY), wanted, rtol=1e-6)


def test_finite_differences_estimate_r1_r2(real_and_fake):
    keys = jax.random.split(KEY, 20_000)
    with jax.enable_x64(True):
        both = [jnp.asarray(x, "float64") for x in real_and_fake]
        estimate = jax.jit(jax.vmap(partial(PENALTIES["approximate_r1_r2"], quadratic, *both)))(keys).mean(0)
    # the square of a normal variable, twice: its mean over 20,000 draws is off by 1 % at one standard deviation
    np.testing.assert_allclose(estimate, jitted("r1_r2")(quadratic, *real_and_fake, KEY), rtol=0.05)


@pytest.mark.parametrize("name", ["wgan_gp", "dragan"])
def test_gradient_norms_are_drawn_to_1(name, real_and_fake):
    slope = float(np.sqrt((WEIGHTS**2).sum()))
    found = jitted(name)(linear, *real_and_fake, KEY)
    np.testing.assert_allclose(found, np.full(3, (slope - 1) ** 2), rtol=1e-5)
    at_one = jitted(name)(lambda x: linear(x) / slope, *real_and_fake, KEY)
    np.testing.assert_allclose(at_one, np.zeros(3), atol=1e-10)


def test_wgan_gp_looks_between_and_dragan_beside():
    real, fake = np.zeros((4, 2, 2, 1)), np.ones((4, 2, 2, 1))

    def kinked(images):  # slope 3 strictly between 0 and 1, else 1
        x = images[:, 0, 0, 0]
        return jnp.where((x > 0) & (x < 1), 3 * x, x)

    np.testing.assert_allclose(jitted("wgan_gp")(kinked, real, fake, KEY), np.full(4, 4.0), rtol=1e-5)
    real[::2] = 1.0  # deviation 0.5: noise below 0.25
    found = np.asarray(jitted("dragan")(kinked, real, fake, KEY))
    np.testing.assert_allclose(found[1::2], np.full(2, 4.0), rtol=1e-5)
    np.testing.assert_allclose(found[::2], np.zeros(2), atol=1e-10)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_of_a_flat_discriminator_have_finite_derivatives(name, real_and_fake):
    def value(scale):
        return PENALTIES[name](lambda x: scale * linear(x), *map(jnp.asarray, real_and_fake), KEY).sum()

    assert np.isfinite(jax.jit(jax.grad(value))(0.0))


def test_consistency_is_0_where_the_augmentation_changes_nothing(real_and_fake):
    still, moved = (
        jax.jit(partial(consistency, augment=augment), static_argnums=0)
        for augment in (lambda x, key: x[:, ::-1], lambda x, key: x + 1)
    )

    def symmetric(x):
        return x.sum((1, 2, 3))

    np.testing.assert_allclose(still(symmetric, *real_and_fake, KEY), np.zeros(3), atol=1e-10)
    np.testing.assert_allclose(moved(symmetric, *real_and_fake, KEY), np.full(3, 16.0), rtol=1e-5)


def test_pairs_come_back_split():
    real, fake = np.random.default_rng(0).standard_normal((2, 5, 1, 1, 1), np.float32)
    found = jax.jit(lambda *both: split_pairs(pairs(*both)[:, 0, 0, 0]))(real, fake)
    np.testing.assert_array_equal(found, (real[:, 0, 0, 0], fake[:, 0, 0, 0]))


@pytest.mark.parametrize("name", PENALTIES)
def test_missing_and_unequal_examples_are_named(name, key, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such checks before ours
    images = jnp.zeros((2, 4, 4, 1))
    needs = {"r2": "fake"}.get(name, "real")
    given = {"real": images, "fake": images} | {needs: None}
    with pytest.raises(ValueError, match="pass a batch"):
        PENALTIES[name](quadratic, given["real"], given["fake"], key)
    if name not in ("r1", "r2", "dragan"):  # which look at one of them
        with pytest.raises(ValueError, match=r"real float32\[2, 4, 4, 1\], fake float32\[2, 4, 4, 3\]: give batches"):
            PENALTIES[name](quadratic, images, jnp.zeros((2, 4, 4, 3)), key)
