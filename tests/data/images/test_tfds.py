"""tensorflow-datasets' folders without TensorFlow: found, read back, and never silently when they are damaged."""

import numpy as np
import pytest

import jaxai.data
from jaxai.data.images import official as official
from jaxai.data.images import prepare as prepare
from jaxai.data.images import tfds as tfds


def test_unmodified_tensorflow_datasets_reads_it(small, tmp_path):
    import tensorflow_datasets

    prepare.prepare("mnist", small, tmp_path / "out")
    source = tensorflow_datasets.data_source(
        "mnist",
        split="train",
        data_dir=tmp_path / "out",
        download=False,
        builder_kwargs={"file_format": "array_record"},
    )
    ours = jaxai.data.load("mnist", "train", data_dir=tmp_path / "out")
    assert len(source) == 60
    for row, example in enumerate(source):
        np.testing.assert_array_equal(example["image"], ours.images[row])
        assert example["label"] == ours.labels[row]


def test_the_default_folder_is_found(small, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    prepare.prepare("mnist", small, tfds.default_dir())
    assert "prepared folder" in jaxai.data.load("mnist", "test").source


def test_a_damaged_prepared_folder_is_never_read_silently(small, tmp_path):
    folder = prepare.prepare("mnist", small, tmp_path)
    good = jaxai.data.load("mnist", "train", data_dir=tmp_path).fingerprint
    rng = np.random.default_rng(0)
    for path in [folder / "mnist-train.array_record-00000-of-00001", folder / "dataset_info.json"]:
        original = path.read_bytes()
        for trial in range(30):
            content = bytearray(original)
            if trial < 20:
                content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            else:
                content = content[: rng.integers(len(content))]
            path.write_bytes(content)
            message = f"{folder}: prepare it again"
            try:
                assert jaxai.data.load("mnist", "train", data_dir=tmp_path).fingerprint == good
            except OSError as error:
                message = str(error)
            assert str(folder) in message
            assert "prepare it again" in message
            assert "\n" not in message
        path.write_bytes(original)


def test_wrong_shape_in_a_prepared_folder(small, tmp_path):
    folder = prepare.prepare("mnist", small, tmp_path)
    (tmp_path / "cifar10").mkdir()
    folder.rename(tmp_path / "cifar10" / "3.0.2")
    with pytest.raises(OSError, match=r"28x28 L, cifar10 has 32x32"):
        jaxai.data.load("cifar10", "train", data_dir=tmp_path)
