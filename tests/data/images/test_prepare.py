"""Preparing tensorflow-datasets' folders without TensorFlow: from files, from a server, and what can go wrong."""

import logging
import resource
import sys
from collections.abc import Iterator

import pytest

import jaxai.data
from jaxai.data.images import official as official
from jaxai.data.images import prepare as prepare
from jaxai.data.images import tfds as tfds
from tests.data.idx_files import CLASSES, sorted_rows, tree, trust, write_cifar_archive, write_idx


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_prepared_folder_holds_the_official_examples(small, tmp_path, name, capfd):
    folder = prepare.prepare(name, small, tmp_path / "out")
    classes = [f"{name}/3.0.1/label.labels.txt"] if name == "fashion_mnist" else []  # digits need no names
    assert tree(tmp_path / "out") == sorted(
        [
            name,
            f"{name}/3.0.1",
            *classes,
            f"{name}/3.0.1/dataset_info.json",
            f"{name}/3.0.1/features.json",
            f"{name}/3.0.1/{name}-test.array_record-00000-of-00001",
            f"{name}/3.0.1/{name}-train.array_record-00000-of-00001",
        ]
    )
    for split in ("train", "test"):
        dataset = jaxai.data.load(name, split, data_dir=tmp_path / "out")
        assert str(folder) in dataset.source
        assert sorted_rows(dataset) == sorted_rows(jaxai.data.load(name, split, data_dir=small))
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_a_prepared_folder_is_left_as_it_is(small, tmp_path):
    folder = prepare.prepare("mnist", small, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare.prepare("mnist", small, tmp_path) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_another_format_is_not_overwritten(small, tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "mnist-train.tfrecord-00000-of-00001").touch()
    (folder / "dataset_info.json").touch()
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"not in ArrayRecord format.*choose another --data-dir"):
        prepare.prepare("mnist", small, tmp_path)
    assert tree(tmp_path) == before


def test_another_process_prepares_the_same_folder(small, tmp_path, monkeypatch):
    """The slower one keeps what the quicker one made."""
    quick = prepare.prepare("mnist", small, tmp_path / "quick")
    read, calls = prepare.read_prepared, []

    def overtaken(*args):
        if not calls:
            calls.append(quick.parent.rename(tmp_path / "out" / "mnist"))
        return read(*args)

    monkeypatch.setattr(prepare, "read_prepared", overtaken)
    assert prepare.prepare("mnist", small, tmp_path / "out") == tmp_path / "out" / "mnist" / "3.0.1"
    assert len(jaxai.data.load("mnist", "train", data_dir=tmp_path / "out").labels) == 60
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mnist"]


def test_cifar10_from_its_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "CIFAR_RECORDS", 4)
    (tmp_path / "official").mkdir()
    archive = write_cifar_archive(tmp_path / "official" / "cifar-10-binary.tar.gz", 4)
    prepare.prepare("cifar10", trust(monkeypatch, archive.parent), tmp_path)
    dataset = jaxai.data.load("cifar10", "train", data_dir=tmp_path)
    assert dataset.images.shape == (20, 32, 32, 3)
    images, labels = official.cifar_arrays(
        official.read_cifar_archive(archive, "train"), jaxai.data.images.sources.spec_of("cifar10")
    )
    expected = sorted(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
    assert sorted_rows(dataset) == expected
    names = (tmp_path / "cifar10" / "3.0.2" / "label.labels.txt").read_text().split()
    assert names == CLASSES.split()


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Every write beyond 1,000 bytes of a file fails, in Python as in ArrayRecord's C++."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_nothing(small, tmp_path, full_disk):
    before = tree(tmp_path)
    with pytest.raises(OSError, match=r"nothing was left behind: free space on that disk") as caught:
        prepare.prepare("mnist", small, tmp_path / "a" / "b")
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_no_space_left_in_python_code(small, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "_encode_png", refuse)
    before = tree(tmp_path)
    with pytest.raises(OSError, match=r"No space left on device.*free space on that disk"):
        prepare.prepare("mnist", small, tmp_path)
    assert tree(tmp_path) == before


def test_wrong_checksum_names_the_file(small, tmp_path):
    path = small / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    before = tree(tmp_path)
    with pytest.raises(
        ValueError, match=r"t10k-labels-idx1-ubyte.gz: wrong checksum .*fetch the official file"
    ) as caught:
        prepare.prepare("mnist", small, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_a_file_mislabelled_before_its_checksum_was_taken(tmp_path, monkeypatch):
    folder = write_idx(tmp_path / "official")
    (folder / "train-images-idx3-ubyte.gz").write_bytes((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: mislabelled"):
        prepare.prepare("mnist", trust(monkeypatch, folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_to_prepare_from_are_missing(tmp_path, small):
    (small / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte.gz missing; .*checksums"):
        prepare.prepare("mnist", small, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"--from .*nowhere: no such folder"):
        prepare.prepare("mnist", tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"name 'digits8x8' is unknown here.*choose one of: mnist, fashion_mnist, cifar10$"
    ):
        prepare.prepare("digits8x8", small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_download(server, small, caplog):
    caplog.set_level(logging.INFO, "jaxai.data")
    dataset = jaxai.data.load("mnist", "train")
    assert "downloaded to" in dataset.source
    assert sorted_rows(dataset) == sorted_rows(jaxai.data.load("mnist", "train", data_dir=small))
    assert tree(tfds.default_dir())[0] == "mnist"
    assert not any("download" in path for path in tree(tfds.default_dir()))
    assert "prepared folder" in jaxai.data.load("mnist", "train").source


def test_download_with_a_wrong_checksum(server, small):
    path = small / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(FileNotFoundError, match=r"wrong checksum.*Three ways out") as caught:
        jaxai.data.load("fashion_mnist", "train")
    assert "\n" not in str(caught.value)
    assert tree(tfds.default_dir()) == []
