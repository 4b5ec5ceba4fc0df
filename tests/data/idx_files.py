"""Small files in the official layouts, for tests."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

import jaxai.data
from jaxai.data.images import prepare as prepare

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def digits(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)


def write_idx(folder: Path, *, train: int = 60, test: int = 20, packed: bool = True) -> Path:
    """The four files of a small MNIST look-alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (stem, n) in enumerate({"train": train, "t10k": test}.items()):
        for kind, array in zip(("images-idx3", "labels-idx1"), digits(n, seed), strict=True):
            content = idx_bytes(array)
            name = f"{stem}-{kind}-ubyte"
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
            else:
                (folder / name).write_bytes(content)
    return folder


def cifar_bytes(records: int, seed: int = 0) -> bytes:
    rows = np.random.default_rng(seed).integers(0, 256, (records, 3073), dtype=np.uint8)
    rows[:, 0] %= 10
    return rows.tobytes()


def write_cifar_archive(path: Path, records: int) -> Path:
    """A small look-alike of cifar-10-binary.tar.gz."""
    files = {f"data_batch_{i}.bin": cifar_bytes(records, i) for i in range(1, 6)}
    files |= {
        "test_batch.bin": cifar_bytes(records, 6),
        "batches.meta.txt": ("\n".join(CLASSES.split()) + "\n\n").encode(),
    }
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def trust(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str = "http://files.invalid") -> Path:
    """Take the checksums of the files in ``folder`` for the official ones."""
    from tensorflow_datasets.core.download.checksums import compute_url_info

    infos = {f"{url}/{path.name}": compute_url_info(path) for path in folder.iterdir()}
    monkeypatch.setattr(prepare, "_url_infos", lambda name: infos)
    return folder


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def sorted_rows(dataset: jaxai.data.ImageDataset) -> list[bytes]:
    return sorted(bytes([label]) + image.tobytes() for image, label in zip(dataset.images, dataset.labels, strict=True))
