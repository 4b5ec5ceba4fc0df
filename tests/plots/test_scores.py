"""Pictures of a classifier's scores: sizes, colours, missing classes, bad input, atomic writes."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxai.plots import scores
from tests.helpers import BAD_CLASSIFICATIONS, LABELS, PROBABILITIES, classified


def picture(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


NAMES = ["aeroplane", "$_{$", "_x"]  # none may be read as a formula or hidden from the legend


@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.parametrize("labels", [LABELS, np.zeros(6, np.int32)])
def test_roc_picture(tmp_path, labels, names):
    scores.plot_roc(tmp_path / "new" / "roc.png", labels, PROBABILITIES, names)
    height, width, _ = picture(tmp_path / "new" / "roc.png").shape
    assert 300 < height < width < 2000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["roc.png"]


def test_roc_picture_of_many_classes(tmp_path):
    scores.plot_roc(tmp_path / "roc.png", *classified(0, 60, 24))
    assert picture(tmp_path / "roc.png").shape[1] < 2000


def test_confusion_picture(tmp_path):
    scores.plot_confusion(tmp_path / "a.png", [[5, 0, 1], [0, 0, 0], [12345, 2, 9]], NAMES)
    pixels = picture(tmp_path / "a.png")
    assert 200 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) < 1000
    assert (pixels == np.array([211, 211, 211])).all(-1).mean() > 0.01  # the empty row is light grey
    scores.plot_confusion(tmp_path / "b.png", np.array([[5, 0, 1], [1, 2, 3], [0, 2, 9]]))
    assert (picture(tmp_path / "b.png") == np.array([211, 211, 211])).all(-1).mean() < 0.001


def test_confusion_colours_show_shares_not_counts(tmp_path):
    counts = np.array([[3, 1], [1, 1]])
    scores.plot_confusion(tmp_path / "a.png", counts)
    blue = np.array([8, 48, 107])  # a share of 1
    assert not (picture(tmp_path / "a.png")[:, :200] == blue).all(-1).any()
    scores.plot_confusion(tmp_path / "a.png", np.diag([1000, 1]))
    assert (picture(tmp_path / "a.png")[:, :200] == blue).all(-1).sum() > 2000  # both cells, the one example too


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_of_mistakes(tmp_path, channels):
    images = np.zeros((6, 8, 8, channels), np.uint8)
    images[[2, 4]] = [200, 100, 50][:channels]
    scores.plot_mistakes(tmp_path / "a.png", images, LABELS, PROBABILITIES, NAMES)
    pixels = picture(tmp_path / "a.png")
    assert 100 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) < 1000
    colour = [200, 100, 50] if channels == 3 else [200] * 3
    assert (pixels == np.array(colour)).all(-1).mean() > 0.2  # the two wrong ones are shown
    one = tmp_path / "one.png"
    scores.plot_mistakes(one, images, LABELS, PROBABILITIES, count=1)
    assert picture(one).shape != pixels.shape


def test_picture_without_mistakes(tmp_path):
    images = np.zeros((6, 8, 8, 1), np.uint8)
    scores.plot_mistakes(tmp_path / "a.png", images, LABELS, np.eye(3)[LABELS])
    assert picture(tmp_path / "a.png").size


def test_filters_fill_their_own_range(tmp_path):
    kernel = np.zeros((2, 4, 1, 3))
    kernel[..., 0] = -5 + np.arange(8).reshape(2, 4, 1)
    kernel[0, 0, 0, 1] = 1e-3  # the third is constant
    scores.plot_filters(tmp_path / "a.png", jnp.asarray(kernel, "bfloat16"))
    pixels = picture(tmp_path / "a.png")
    assert pixels.shape == (2 * (32 + 6) + 6, 2 * (64 + 6) + 6, 3)
    centres = pixels[14:44:16, 14::16][:, :4, 0]
    assert centres.ravel().tolist() == pytest.approx(np.arange(8) * 255 / 7, abs=1)
    assert (pixels[6:22, 76:92] == 255).all()  # the one weight that is not zero
    assert (pixels[6:38, 92:140] == 0).all()
    assert set(np.unique(pixels[44:76, 6:70])) <= {127, 128}
    assert (pixels[38:, 70:] == 255).all()  # the fourth place is empty


def test_filters_of_three_channels_share_a_range(tmp_path):
    kernel = np.zeros((1, 2, 3, 1), np.float32)
    kernel[0, :, :, 0] = [[0, 1, 2], [2, 2, 4]]
    scores.plot_filters(tmp_path / "a.png", kernel)
    pixels = picture(tmp_path / "a.png").astype(int)
    assert pixels[10, 10].tolist() == pytest.approx([0, 64, 128], abs=1)
    assert pixels[10, 60].tolist() == pytest.approx([128, 128, 255], abs=1)


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    scores.plot_filters(target, np.zeros((2, 2, 1, 1)))
    before = target.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        scores.plot_confusion(target, [[1, 0], [0, 1]])
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("labels", "probabilities", "message"), BAD_CLASSIFICATIONS)
def test_bad_labels_and_probabilities(labels, probabilities, message, tmp_path):
    images = np.zeros((len(labels), 4, 4, 1), np.uint8)
    for call in (
        lambda: scores.plot_roc(tmp_path / "a.png", labels, probabilities),
        lambda: scores.plot_mistakes(tmp_path / "a.png", images, labels, probabilities),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_other_bad_arguments(tmp_path):
    path, images = tmp_path / "a.png", np.zeros((6, 4, 4, 1), np.uint8)
    given = (LABELS, PROBABILITIES)
    for message, call in (
        ("names: 1 of them", lambda: scores.plot_roc(path, *given, ["a"])),
        ("names: 1 of them", lambda: scores.plot_mistakes(path, images, *given, ["a"])),
        ("count=0", lambda: scores.plot_mistakes(path, images, *given, count=0)),
        (r"images: float64\[6, 4", lambda: scores.plot_mistakes(path, images / 255, *given)),
        (r"images: uint8\[6, 4, 4\]", lambda: scores.plot_mistakes(path, images[..., 0], *given)),
        ("images: 5, labels: 6", lambda: scores.plot_mistakes(path, images[:5], *given)),
        (r"confusion: int64\[2, 3\]", lambda: scores.plot_confusion(path, np.zeros((2, 3), np.int64))),
        (r"confusion: int64\[0, 0\]", lambda: scores.plot_confusion(path, np.zeros((0, 0), np.int64))),
        ("confusion: int64 with minimum -1", lambda: scores.plot_confusion(path, [[1, -1], [0, 2]])),
        ("give integer counts, not shares", lambda: scores.plot_confusion(path, np.eye(2))),
        ("names: 1 of them", lambda: scores.plot_confusion(path, [[1, 0], [0, 2]], ["a"])),
        ("kernel: shape", lambda: scores.plot_filters(path, np.zeros((3, 3, 2, 4)))),
        ("kernel: shape", lambda: scores.plot_filters(path, np.zeros((3, 3, 1, 0)))),
        ("kernel: shape", lambda: scores.plot_filters(path, np.zeros((3, 3, 1)))),
        ("kernel: int64", lambda: scores.plot_filters(path, np.zeros((3, 3, 1, 4), np.int64))),
        ("kernel: NaN", lambda: scores.plot_filters(path, np.full((3, 3, 1, 4), np.nan))),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not any(tmp_path.iterdir())
