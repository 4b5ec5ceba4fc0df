"""Reading the official files: idx for MNIST and Fashion-MNIST, binary for CIFAR-10. Pickles are never read."""

import gzip
import math
import tarfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxai.data.images.specs import Arrays, Spec, check_arrays
from jaxai.errors import MissingFileError, UserError

IDX_STEMS = {"train": "train", "test": "t10k"}
IDX_CONTENT = {1: "labels", 3: "images"}
IDX_MAX_ITEMS = 1_000_000  # limits what a false header makes us allocate to 784 MB
GZIP_MAX_RATIO = 1_032  # the highest compression ratio of deflate
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
CIFAR_RECORD = 3_073  # a label byte, then the red, green and blue planes of 32x32
CIFAR_RECORDS = 10_000  # in each file


def expected_files(name: str, split: str) -> tuple[str, ...]:
    """The official file names of a split; idx files may also end in ``.gz`` and have a dot before ``idx``."""
    if name == "cifar10":
        return CIFAR_FILES[split]
    stem = IDX_STEMS[split]
    return f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"


def _spellings(file: str) -> tuple[str, ...]:
    if not file.endswith("ubyte"):
        return (file,)
    dotted = file.replace("-idx", ".idx")
    return file, f"{file}.gz", dotted, f"{dotted}.gz"


def find_official(name: str, split: str, data_dir: Path) -> tuple[Path, ...] | None:
    """The official files of a split in ``data_dir`` or its subfolder ``name``; ``None`` if there are none.

    Raises ``FileNotFoundError`` if a folder has only some of them.
    """
    folders = [data_dir / name, data_dir]  # the subfolder first: Fashion-MNIST and MNIST have the same file names
    if name == "cifar10":
        folders = [inner for folder in folders for inner in (folder / CIFAR_FOLDER, folder)]
    wanted = expected_files(name, split)
    for folder in folders:
        hits = [next((folder / s for s in _spellings(file) if (folder / s).is_file()), None) for file in wanted]
        found = tuple(hit for hit in hits if hit is not None)
        if len(found) == len(wanted):
            return found
        if found:
            missing = [file for file, hit in zip(wanted, hits, strict=True) if hit is None]
            raise MissingFileError(
                f"{folder}: {', '.join(missing)} of {name} {split} missing, although {found[0].name} is there; add"
                " the missing official files"
            )
    return None


def read_official(spec: Spec, split: str, paths: tuple[Path, ...]) -> Arrays:
    """Images uint8 [n, height, width, C] and labels int32 [n] from the files found by ``find_official``.

    Raises ``ValueError``, naming the file, if one is truncated, damaged, mislabelled or of the wrong shape.
    """
    if spec.name == "cifar10":
        return cifar_arrays({str(path): path.read_bytes() for path in paths}, spec)
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    images, labels = check_arrays(images[..., None], labels, spec, f"{paths[0]} and {paths[1].name}")
    _check_not_the_other(spec, split, labels, paths[1])
    return images, labels


def read_idx(path: Path, ndim: int) -> UInt8[np.ndarray, "..."]:
    """Read a uint8 array from an idx or idx.gz file: ``ndim`` is 1 for labels, 3 for images.

    Compression is detected from the first bytes, not from the file name. Memory is bounded by the file's size, whatever
    its header claims. Raises ``ValueError`` with the file and what is wrong with it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            header = stream.read(4 + 4 * ndim)
            shape = _idx_shape(header, ndim, path)
            length = math.prod(shape)
            room = size * GZIP_MAX_RATIO if packed else size
            if shape[0] > IDX_MAX_ITEMS or length > room:
                raise UserError(
                    f"{path}: truncated or damaged: its header claims shape {list(shape)}, more than {size:,} bytes"
                    " can hold; fetch the official file again"
                )
            content = stream.read(length + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: truncated or damaged gzip file ({error}); fetch the official file again") from None
    if len(content) != length:
        relation = "truncated" if len(content) < length else "longer than its header says"
        raise UserError(
            f"{path}: {relation}: shape {list(shape)} needs {length:,} bytes after the header; fetch the official"
            " file again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_shape(header: bytes, ndim: int, path: Path) -> tuple[int, ...]:
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] != 8:
        raise UserError(
            f"{path}: wrong magic number {header[:4].hex() or 'in an empty file'}, expected 000008{ndim:02x} (idx,"
            f" unsigned bytes, {IDX_CONTENT[ndim]}); this is no idx file of that kind: fetch the official one"
        )
    if header[3] != ndim:
        holds = IDX_CONTENT.get(header[3], f"{header[3]} dimensions")
        raise UserError(
            f"{path}: mislabelled: its magic number {header[:4].hex()} says that it holds {holds}, expected"
            f" {IDX_CONTENT[ndim]} (000008{ndim:02x}); give the files their official names"
        )
    if len(header) < 4 + 4 * ndim:
        raise UserError(f"{path}: truncated inside its header; fetch the official file again")
    return tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, 4 + 4 * ndim, 4))


def _check_not_the_other(spec: Spec, split: str, labels: np.ndarray, path: Path) -> None:
    """Raise ``ValueError`` if MNIST and Fashion-MNIST are confused.

    Their files have the same names and shapes, but only Fashion-MNIST's classes are balanced.
    """
    if len(labels) != spec.counts[split]:
        return
    looks = "fashion_mnist" if np.all(np.bincount(labels, minlength=10) == len(labels) // 10) else "mnist"
    if looks != spec.name:
        raise UserError(
            f"{path}: mislabelled: its class counts are {looks}'s, not {spec.name}'s; put {spec.name}'s files into"
            f" a subfolder named {spec.name}"
        )


def cifar_arrays(contents: dict[str, bytes], spec: Spec) -> Arrays:
    """Images uint8 [n, 32, 32, 3] and labels int32 [n] from a dictionary of file names and bytes, in its order."""
    for file, content in contents.items():
        if len(content) != CIFAR_RECORD * CIFAR_RECORDS:
            relation = "truncated" if len(content) < CIFAR_RECORD * CIFAR_RECORDS else "too long"
            raise UserError(
                f"{file}: {relation}: {len(content):,} bytes, expected {CIFAR_RECORDS:,} records of {CIFAR_RECORD:,};"
                " fetch CIFAR-10's binary version again"
            )
    parts = [np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD) for content in contents.values()]
    for file, part in zip(contents, parts, strict=True):
        if part[:, 0].max() > 9:
            raise UserError(
                f"{file}: label {part[:, 0].max()} is outside 0..9; the file is damaged or not CIFAR-10's binary"
                " version: fetch it again"
            )
    records = np.concatenate(parts)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return check_arrays(np.ascontiguousarray(images), records[:, 0], spec, next(iter(contents)))


def read_cifar_archive(path: Path, split: str) -> dict[str, bytes]:
    """The bytes of a split's files in the official archive, by name; nothing is unpacked to disk."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            return {file: _member(archive, f"{CIFAR_FOLDER}/{file}") for file in CIFAR_FILES[split]}
    except (tarfile.TarError, KeyError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not the official archive ({error}); fetch it again") from None


def read_cifar_classes(path: Path) -> list[str]:
    """The ten class names in the official archive."""
    with tarfile.open(path, "r:gz") as archive:
        return _member(archive, f"{CIFAR_FOLDER}/batches.meta.txt").decode().split()


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise KeyError(f"{name} is not a file")
    return stream.read(CIFAR_RECORD * CIFAR_RECORDS + 1)
