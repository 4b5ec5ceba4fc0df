"""Pictures of attributions: colours, and input that can't be drawn."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxai.plots.attribution import plot_explanations


def test_picture(tmp_path):
    x = np.zeros((2, 4, 4, 1), np.uint8)
    signs = np.zeros((2, 4, 4, 1), np.float32)
    signs[0, :, :2], signs[0, :, 2:] = 3, -1
    plot_explanations(tmp_path / "new" / "a.png", x, {"signs": signs, "nothing": jnp.zeros((2, 4, 4))})
    with Image.open(tmp_path / "new" / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    strong, weak = (red > 80) & (blue < 60), (blue > red + 10) & (red > 60)
    assert strong.sum() > 500
    assert weak.sum() > 500
    assert np.nonzero(strong)[1].max() < np.nonzero(weak)[1].max()
    assert ((red == 0) & (green == 0) & (blue == 0)).sum() > 2000  # the black pictures themselves


@pytest.mark.parametrize(
    ("pictures", "attributions", "message"),
    [
        (np.zeros((2, 4, 4, 2)), {"a": np.zeros((2, 4, 4))}, "images: shape"),
        (np.zeros((0, 4, 4, 1)), {"a": np.zeros((0, 4, 4))}, "0 images, 1 attributions"),
        (np.zeros((2, 4, 4, 1)), {}, "2 images, 0 attributions"),
        (np.zeros((2, 4, 4, 1)), {"a": np.zeros((2, 4, 5))}, r"a: shape \(2, 4, 5\) for images"),
        (np.zeros((2, 4, 4, 1)), {"a": np.full((2, 4, 4), np.nan)}, "a: NaN"),
    ],
)
def test_bad_pictures(tmp_path, pictures, attributions, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(plot_explanations)(tmp_path / "a.png", pictures, attributions)
    assert not list(tmp_path.iterdir())
