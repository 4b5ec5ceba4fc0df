"""Grids and files of images: shapes, pixels, atomic writes."""

import os

import numpy as np
import pytest
from PIL import Image

from jaxai import plots
from jaxai.plots.images import GAP


def test_grid_places_images_and_gaps():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(3, 1).repeat(2, 2)
    canvas = plots.grid(images, 3)
    assert (canvas.shape, canvas.dtype) == ((7, 8, 1), np.uint8)
    assert (canvas[:3, 3:5] == 1).all()
    assert (canvas[4:, 0:2] == 3).all()
    assert (canvas[3] == GAP).all()
    assert (canvas[:, 2] == GAP).all()
    assert (canvas[4:, 6:] == GAP).all()  # the sixth place is empty


def test_grid_of_floats_clips():
    images = np.array([-2.0, -1, 0, 1, 3], np.float32).reshape(5, 1, 1, 1)
    assert plots.grid(images, 5)[0, ::2, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_survives_the_round_trip(tmp_path, channels):
    array = np.random.default_rng(0).integers(0, 256, (4, 5, channels), np.uint8)
    plots.save_png(tmp_path / "new" / "a.png", array, scale=3)
    read = np.asarray(Image.open(tmp_path / "new" / "a.png")).reshape(12, 15, channels)
    assert (read == array.repeat(3, 0).repeat(3, 1)).all()


def test_gif_holds_every_frame(tmp_path):
    frames = [np.full((4, 4, 1), level, np.uint8) for level in (0, 100, 200)]
    plots.save_gif(tmp_path / "a.gif", frames, milliseconds=50)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
        assert animation.info["duration"] == 50
        assert animation.size == (8, 8)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    plots.save_png(target, np.zeros((2, 2), np.uint8))
    before = target.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save_png(target, np.ones((2, 2), np.uint8))
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("images", "columns", "message"),
    [
        (np.zeros((2, 3, 3), np.uint8), 1, r"images: shape \[2, 3, 3\]"),
        (np.zeros((2, 3, 3, 1), int), 1, "images: int64"),
        (np.full((2, 3, 3, 1), np.nan), 1, "images: NaN"),
        (np.zeros((2, 3, 3, 1), np.uint8), 0, "columns=0"),
        (np.zeros((0, 3, 3, 1), np.uint8), 2, "0 images"),
    ],
)
def test_bad_grids(images, columns, message):
    with pytest.raises(ValueError, match=message):
        plots.grid(images, columns)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match="array: float64"):
        plots.save_png(tmp_path / "a.png", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="scale=0"):
        plots.save_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8), scale=0)
    with pytest.raises(ValueError, match="frames: 0"):
        plots.save_gif(tmp_path / "a.gif", [])


def test_stack_gives_grey_images_the_channels_of_coloured_ones():
    grey, colour = np.full((2, 1, 1, 1), 7, np.uint8), np.arange(3, dtype=np.uint8).reshape(1, 1, 1, 3)
    stacked = plots.stack(grey, colour)
    assert stacked.shape == (3, 1, 1, 3)
    assert stacked[:, 0, 0].tolist() == [[7, 7, 7], [7, 7, 7], [0, 1, 2]]
    assert plots.stack(grey, grey).shape == (4, 1, 1, 1)
