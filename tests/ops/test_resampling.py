"""Bicubic interpolation against Pillow's, and squares of pixels moved into channels and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxai.ops.resampling import depth_to_space, downscaled, pad_to_multiple, space_to_depth, upscaled


@pytest.mark.parametrize("scale", [2, 4])
def test_scaling_is_bicubic(key, scale):
    """Pillow's BICUBIC, in float: Keys's kernel with a = -0.5, stretched where it makes smaller."""
    image = jax.random.uniform(key, (1, 24, 32, 1), minval=-1)

    def pillow(x, height, width):
        return np.asarray(
            Image.fromarray(np.asarray(x[0, :, :, 0]), "F").resize((width, height), Image.Resampling.BICUBIC)
        )

    small = downscaled(image, scale)
    np.testing.assert_allclose(small[0, :, :, 0], pillow(image, 24 // scale, 32 // scale), atol=1e-5)
    np.testing.assert_allclose(upscaled(small, scale)[0, :, :, 0], pillow(small, 24, 32), atol=1e-5)


def test_a_scale_must_divide_the_image():
    with pytest.raises(ValueError, match="scale=4 does not divide images of 8x6"):
        downscaled(jnp.zeros((1, 8, 6, 1)), 4)


def test_folding_moves_squares_into_channels_and_back(key):
    images = jax.random.normal(key, (2, 4, 6, 3))
    maps = space_to_depth(images, 2)
    assert maps.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(maps[1, 1, 2], images[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(depth_to_space(maps, 2), images)


def test_fold_must_divide_the_image():
    with pytest.raises(ValueError, match="fold=2 does not divide images of 5x4"):
        space_to_depth(jnp.zeros((1, 5, 4, 1)), 2)


@given(rows=st.integers(1, 3), columns=st.integers(1, 3), size=st.integers(1, 4), channels=st.integers(1, 3))
@pytest.mark.slow
def test_squares_hold_every_pixel_once(rows, columns, size, channels):
    images = jnp.arange(rows * columns * size**2 * channels, dtype=jnp.float32)
    images = images.reshape(1, rows * size, columns * size, channels)
    maps = space_to_depth(images, size)
    assert maps.shape == (1, rows, columns, size**2 * channels)
    np.testing.assert_array_equal(np.sort(maps, axis=None), np.arange(images.size))
    np.testing.assert_array_equal(depth_to_space(maps, size), images)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_constant_image_stays_constant(scale):
    images = jnp.full((2, 8, 12, 3), 0.3)
    np.testing.assert_allclose(downscaled(images, scale), jnp.full((2, 8 // scale, 12 // scale, 3), 0.3), atol=1e-6)
    np.testing.assert_allclose(upscaled(images, scale), jnp.full((2, 8 * scale, 12 * scale, 3), 0.3), atol=1e-6)


def test_a_scale_below_one_is_refused():
    with pytest.raises(ValueError, match="scale=0 does not divide"):
        downscaled(jnp.zeros((1, 4, 4, 1)), 0)
    with pytest.raises(ValueError, match="fold=0 does not divide"):
        space_to_depth(jnp.zeros((1, 4, 4, 1)), 0)


def test_padding_repeats_edges_until_the_size_divides():
    images = jnp.arange(6.0).reshape(1, 2, 3, 1)
    assert pad_to_multiple(images, 2)[0, ..., 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5]]
    np.testing.assert_array_equal(pad_to_multiple(images, 1), images)
