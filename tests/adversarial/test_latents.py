"""Walks between latents."""

import numpy as np

from jaxai.adversarial.latents import slerp, walk


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
