"""tensorflow-datasets' folders without TensorFlow: preparing, reading back, and what can go wrong on the way."""

import functools
import http.server
import logging
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import jaxai.data
from jaxai.data.images import official as official
from jaxai.data.images import prepare as prepare
from jaxai.data.images import tfds as tfds
from tests.data.idx_files import CLASSES, write_cifar_archive, write_idx


def trust(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str = "http://files.invalid") -> Path:
    """Take the checksums of the files in ``folder`` for the official ones."""
    from tensorflow_datasets.core.download.checksums import compute_url_info

    infos = {f"{url}/{path.name}": compute_url_info(path) for path in folder.iterdir()}
    monkeypatch.setattr(prepare, "_url_infos", lambda name: infos)
    return folder


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    return trust(monkeypatch, write_idx(tmp_path / "official"))


def sorted_rows(dataset: jaxai.data.ImageDataset) -> list[bytes]:
    return sorted(bytes([label]) + image.tobytes() for image, label in zip(dataset.images, dataset.labels, strict=True))


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


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(small, monkeypatch) -> Iterator[str]:
    """A loopback stand-in for the data set's server."""
    handler = functools.partial(Quiet, directory=str(small))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        trust(monkeypatch, small, url)
        monkeypatch.setattr(prepare, "_first_url", lambda name: f"{url}/train-images-idx3-ubyte.gz")
        yield url
        running.shutdown()
        thread.join()


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
