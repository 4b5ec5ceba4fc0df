"""Official files: what is read, and each damage with its message."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

import jaxai.data
from jaxai.data.images import official as official
from jaxai.data.images.specs import SPECS
from tests.data.idx_files import cifar_bytes, digits, idx_bytes, write_cifar_archive, write_idx

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def fails(error: type[Exception], folder: Path, *parts: str, name: str = "mnist", split: str = "train") -> str:
    """``load`` raises ``error`` with a message of one line that holds all ``parts``."""
    with pytest.raises(error) as caught:
        jaxai.data.load(name, split, data_dir=folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inside", ["", "mnist"])
@pytest.mark.parametrize("dotted", [True, False])
def test_idx_files_are_found_and_read(tmp_path, packed, inside, dotted):
    folder = write_idx(tmp_path / inside, packed=packed)
    if dotted:
        for path in list(folder.iterdir()):
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    for seed, split in enumerate(("train", "test")):
        dataset = jaxai.data.load("mnist", split, data_dir=str(tmp_path))
        images, labels = digits(60 if split == "train" else 20, seed)
        np.testing.assert_array_equal(dataset.images[..., 0], images)
        np.testing.assert_array_equal(dataset.labels, labels)
        assert dataset.images.dtype == np.uint8
        assert dataset.labels.dtype == np.int32
        assert str(folder) in dataset.source


def test_the_subfolder_of_the_name_wins(tmp_path):
    """Fashion-MNIST's files have MNIST's names."""
    write_idx(tmp_path)
    write_idx(tmp_path / "fashion_mnist", train=30)
    assert len(jaxai.data.load("fashion_mnist", "train", data_dir=tmp_path).labels) == 30


def test_compression_shows_in_the_content_not_in_the_name(tmp_path):
    write_idx(tmp_path, packed=False)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name + ".gz"))
    assert len(jaxai.data.load("mnist", "train", data_dir=tmp_path).labels) == 60


@pytest.mark.parametrize("keep", [0, 3, 10, 16, 5_000])
def test_truncated_idx(tmp_path, keep):
    write_idx(tmp_path, packed=False)
    (tmp_path / IMAGES).write_bytes((tmp_path / IMAGES).read_bytes()[:keep])
    message = fails(ValueError, tmp_path, IMAGES, "fetch the official")
    assert re.search("truncated|wrong magic number", message)


@pytest.mark.parametrize("keep", [20, 5_000])
def test_truncated_gzip(tmp_path, keep):
    write_idx(tmp_path)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    fails(ValueError, tmp_path, path.name, "truncated or damaged gzip file", "fetch the official file again")


def test_gzip_with_a_wrong_checksum_of_its_own(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / f"{IMAGES}.gz"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    fails(ValueError, tmp_path, path.name, "damaged gzip file")


def test_longer_than_the_header_says(tmp_path):
    write_idx(tmp_path, packed=False)
    with (tmp_path / LABELS).open("ab") as file:
        file.write(b"\0")
    fails(ValueError, tmp_path, LABELS, "longer than its header says")


def test_swapped_names(tmp_path):
    write_idx(tmp_path, packed=False)
    (tmp_path / IMAGES).rename(tmp_path / "x")
    (tmp_path / LABELS).rename(tmp_path / IMAGES)
    (tmp_path / "x").rename(tmp_path / LABELS)
    fails(ValueError, tmp_path, IMAGES, "mislabelled", "holds labels, expected images", "official names")


def test_images_where_labels_should_be(tmp_path):
    write_idx(tmp_path, packed=False)
    (tmp_path / LABELS).write_bytes((tmp_path / IMAGES).read_bytes())
    fails(ValueError, tmp_path, LABELS, "mislabelled", "holds images, expected labels")


@pytest.mark.parametrize("magic", [b"\x89PNG", b"\0\0\x0d\x03", b"\x01\0\x08\x03"])
def test_wrong_magic_number(tmp_path, magic):
    write_idx(tmp_path, packed=False)
    content = (tmp_path / IMAGES).read_bytes()
    (tmp_path / IMAGES).write_bytes(magic + content[4:])
    fails(ValueError, tmp_path, IMAGES, f"wrong magic number {magic.hex()}", "expected 00000803")


def test_wrong_shape(tmp_path):
    write_idx(tmp_path, packed=False)
    (tmp_path / IMAGES).write_bytes(idx_bytes(np.zeros((60, 32, 32))))
    fails(ValueError, tmp_path, IMAGES, "uint8 [32, 32, 1]", "mnist has uint8 [28, 28, 1]")


def test_unequal_counts(tmp_path):
    write_idx(tmp_path, packed=False)
    (tmp_path / LABELS).write_bytes(idx_bytes(np.zeros(59)))
    fails(ValueError, tmp_path, "60 images and 59 labels", "same download")


def test_a_label_out_of_range(tmp_path):
    write_idx(tmp_path, packed=False)
    (tmp_path / LABELS).write_bytes(idx_bytes(np.full(60, 11)))
    fails(ValueError, tmp_path, LABELS, "label 11 of example 0 is outside 0..9")


def test_no_examples(tmp_path):
    write_idx(tmp_path, train=0, packed=False)
    fails(ValueError, tmp_path, IMAGES, "at least one")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("count", [2**32 - 1, 900_000])
def test_a_header_cannot_claim_memory(tmp_path, packed, count):
    write_idx(tmp_path, packed=False)
    content = b"\0\0\x08\x03" + count.to_bytes(4, "big") + (28).to_bytes(4, "big") * 2 + b"\0" * 100
    (tmp_path / IMAGES).write_bytes(gzip.compress(content) if packed else content)
    fails(ValueError, tmp_path, IMAGES, "header claims shape")


def test_a_missing_file_of_the_pair(tmp_path):
    write_idx(tmp_path)
    (tmp_path / f"{LABELS}.gz").unlink()
    fails(FileNotFoundError, tmp_path, LABELS, "missing", "add the missing official files")


def test_mnist_is_not_taken_for_fashion_mnist(tmp_path):
    """Only at official size; 1,000 of each class is Fashion-MNIST's signature."""
    labels = np.arange(10_000) % 10
    spec, path = SPECS["mnist"], Path("t10k-labels-idx1-ubyte")
    with pytest.raises(ValueError, match="class counts are fashion_mnist's, not mnist's"):
        official._check_not_the_other(spec, "test", labels, path)
    official._check_not_the_other(SPECS["fashion_mnist"], "test", labels, path)
    labels[0] = 5
    with pytest.raises(ValueError, match="class counts are mnist's, not fashion_mnist's"):
        official._check_not_the_other(SPECS["fashion_mnist"], "test", labels, path)


@pytest.mark.parametrize("packed", [True, False])
def test_mutated_files_raise_typed_errors_only(tmp_path, packed):
    write_idx(tmp_path, train=3, packed=packed)
    path = tmp_path / (f"{IMAGES}.gz" if packed else IMAGES)
    original, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(original[: rng.integers(1, len(original) + 1)])
        content[rng.integers(0, min(len(content), 40))] = rng.integers(0, 256)
        path.write_bytes(content)
        message = IMAGES
        try:
            jaxai.data.load("mnist", "train", data_dir=tmp_path)
        except (ValueError, OSError) as error:
            message = str(error)
        assert IMAGES in message
        assert "\n" not in message


@pytest.mark.parametrize("inside", ["cifar-10-batches-bin", "", "cifar10/cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path, monkeypatch, inside):
    monkeypatch.setattr(official, "CIFAR_RECORDS", 20)
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(cifar_bytes(20, number))
    dataset = jaxai.data.load("cifar10", "train", data_dir=tmp_path)
    assert dataset.images.shape == (100, 32, 32, 3)
    record = np.frombuffer(cifar_bytes(20, 2), np.uint8).reshape(20, 3073)[4]
    assert dataset.labels[24] == record[0]
    assert dataset.images[24, 3, 7].tolist() == [record[1 + plane * 1024 + 3 * 32 + 7] for plane in range(3)]


def test_cifar10_has_its_official_size(tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(cifar_bytes(20))
    fails(ValueError, tmp_path, "test_batch.bin", "truncated", "61,460 bytes", name="cifar10", split="test")


def test_cifar10_label_out_of_range(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "CIFAR_RECORDS", 1)
    (tmp_path / "test_batch.bin").write_bytes(b"\x0b" + bytes(3072))
    fails(ValueError, tmp_path, "test_batch.bin", "label 11 is outside 0..9", name="cifar10", split="test")


@pytest.mark.parametrize("pickles", ["cifar-10-batches-py/data_batch_1", "data_batch_1", "cifar-10-python.tar.gz"])
def test_cifar10_pickles_are_never_read(tmp_path, pickles):
    path = tmp_path / pickles
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    fails(FileNotFoundError, tmp_path, "pickles", "never read", "binary version", name="cifar10")


def test_cifar10_archive_beside_is_to_be_prepared(tmp_path):
    write_cifar_archive(tmp_path / "cifar-10-binary.tar.gz", 2)
    fails(FileNotFoundError, tmp_path, "cifar-10-binary.tar.gz is there", "prepare cifar10", name="cifar10")


def test_a_damaged_archive(tmp_path):
    path = write_cifar_archive(tmp_path / "cifar-10-binary.tar.gz", 2)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match="not the official archive"):
        official.read_cifar_archive(path, "train")


def test_the_official_60000(official_mnist):
    train, test = (jaxai.data.load("mnist", split, data_dir=official_mnist.parent) for split in ("train", "test"))
    assert train.images.shape == (60_000, 28, 28, 1)
    assert test.images.shape == (10_000, 28, 28, 1)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    with pytest.raises(ValueError, match="put fashion_mnist's files into a subfolder named fashion_mnist"):
        jaxai.data.load("fashion_mnist", "train", data_dir=official_mnist)
