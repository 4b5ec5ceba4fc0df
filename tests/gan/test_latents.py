"""Truncation of latents, walks between them, and the way back from examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.gan.latents import invert, slerp, truncated, walk


def test_truncated_latents_are_normal_within_the_limit(key):
    latents = truncated(key, 1000, 20, 0.7)
    assert latents.shape == (1000, 20)
    assert 0.69 < float(jnp.abs(latents).max()) <= 0.7
    # of a standard normal within +-0.7: 1 - 2 t phi(t) / (2 Phi(t) - 1)
    assert float(latents.var()) == pytest.approx(1 - 1.4 * 0.31225 / 0.51607, rel=0.02)
    assert float(truncated(key, 1000, 20, jnp.inf).std()) == pytest.approx(1, rel=0.02)
    with pytest.raises(ValueError, match="truncation must be positive"):
        truncated(key, 1, 1, 0.0)


def test_inversion_finds_the_latents_that_drew_the_examples(key):
    """Of a network with two minima in each latent, one of them the lower: some start finds it."""
    kernel = jax.random.normal(key, (3, 8)) / 2

    def generate(z):
        return ((z**2 + 0.4 * z) @ kernel).reshape(-1, 2, 4)

    wanted = jax.random.uniform(jax.random.fold_in(key, 1), (5, 3), minval=0.5, maxval=1.5)
    start = jax.random.normal(jax.random.fold_in(key, 2), (4, 5, 3))
    latents, left = jax.jit(lambda x, start: invert(generate, x, start))(generate(wanted), start)
    assert latents.shape == (5, 3)
    np.testing.assert_allclose(left, ((generate(latents) - generate(wanted)) ** 2).mean((1, 2)), atol=1e-6)
    assert float(left.max()) < 1e-4


def test_slerp_stays_on_the_sphere():
    start, end = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    points = [slerp(start, end, share) for share in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(points, [[1, 0], [0.5**0.5] * 2, [0, 1]], atol=1e-12)


def test_a_walk_comes_by_every_latent_in_small_steps():
    ends = np.random.default_rng(0).normal(size=(4, 16))
    path = walk(ends, steps=5)
    assert path.shape == (15, 16)
    assert path.dtype == np.float32
    np.testing.assert_allclose(path[[0, 4, 5, 9, 10, 14]], ends[[0, 1, 1, 2, 2, 3]], rtol=1e-6)
    lengths = np.linalg.norm(np.diff(path.reshape(3, 5, 16), axis=1), axis=-1)
    assert lengths.max() < 0.5 * np.linalg.norm(np.diff(ends, axis=0), axis=-1).max()
