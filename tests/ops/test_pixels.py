"""Pixels to floats: exact ends, and other dtypes refused."""

import numpy as np
import pytest
from jaxtyping import config

from jaxai.ops.pixels import to_signed, to_unit
from jaxai.plots import to_pixels


def test_preprocess_covers_minus_one_to_one():
    pixels = np.array([0, 255, 51], np.uint8).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(to_signed(pixels).ravel(), [-1, 1, -0.6], atol=1e-6)  # float32


def test_pixels_of_another_range_are_named(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such checks before ours
    with pytest.raises(ValueError, match="images: float32, give uint8, 0 to 255"):
        to_signed(np.zeros((1, 28, 28, 1), np.float32))


def test_unit_range_is_the_pixels_over_255():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    unit, signed = to_unit(pixels), to_signed(pixels)
    assert unit.dtype == signed.dtype == np.float32
    assert unit.shape == signed.shape == pixels.shape
    np.testing.assert_allclose(unit, pixels / np.float32(255), rtol=1e-6)
    np.testing.assert_allclose(signed, 2 * unit - 1, atol=1e-6)
    assert (float(unit.min()), float(unit.max())) == (0, 1)
    assert (float(signed.min()), float(signed.max())) == (-1, 1)


@pytest.mark.parametrize("function", [to_unit, to_signed])
def test_other_integers_are_named(function, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="images: int32, give uint8, 0 to 255"):
        function(np.zeros((1, 4, 4, 1), np.int32))


def test_every_pixel_survives_the_way_to_floats_and_back():
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    np.testing.assert_array_equal(to_pixels(np.asarray(to_signed(pixels))), pixels)
