"""Damage that restoration undoes: shapes and ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.ops.degradation import holes, low_contrast, noisy


def test_holes_are_one_rectangle_each_of_zeros(key):
    images = jax.random.uniform(key, (2000, 12, 20, 3), minval=0.5)
    damaged, mask = map(np.asarray, jax.jit(lambda images: holes(images, key, 0.25, 0.5))(images))
    assert mask.shape == (2000, 12, 20, 1)
    np.testing.assert_array_equal(damaged, np.where(mask > 0, 0, images))
    heights, widths = (mask[..., 0].any(axis).sum(-1) for axis in (2, 1))
    np.testing.assert_array_equal(mask.sum((1, 2, 3)), heights * widths)  # a rectangle
    assert set(heights) == {3, 4, 5, 6}
    assert set(widths) <= set(range(5, 11))
    assert mask[..., 0].any(0).all()  # every pixel is missing in some image, the corners too


def test_noise_has_its_deviation(key):
    images = jnp.zeros((4, 64, 64, 1))
    assert float(noisy(images, key, 0.4).std()) == pytest.approx(0.4, rel=0.02)
    np.testing.assert_array_equal(noisy(images, key, 0.0), images)


def test_low_contrast_stays_in_range_and_keeps_the_order_of_pixels(key):
    images = jax.random.uniform(key, (100, 5, 5, 1), minval=-1)
    flat = np.asarray(jax.jit(lambda images: low_contrast(images, key, 0.2, 0.6))(images))
    images = np.asarray(images)
    assert np.abs(flat).max() <= 1
    share = np.ptp(flat, axis=(1, 2, 3)) / np.ptp(images, axis=(1, 2, 3))
    assert 0.2 <= share.min() < 0.25
    assert 0.55 < share.max() <= 0.6 + 1e-6
    np.testing.assert_array_equal(images.reshape(100, -1).argmax(1), flat.reshape(100, -1).argmax(1))
