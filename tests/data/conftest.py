"""Tests of the data module touch neither the network nor the user's own folders."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection goes to a proxy that refuses it; tensorflow-datasets' folder is an empty one."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.lower(), proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))


@pytest.fixture(scope="session")
def official_mnist() -> Path:
    """The folder with the official MNIST files; skips where there is none."""
    root = os.environ.get("JAXAI_DATA") or Path(__file__).parents[3] / "shared" / "data"
    folder = Path(root) / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("official MNIST files not found: set JAXAI_DATA to the folder that holds mnist/")
    return folder


def made_up(count: int, seed: int = 0, longest: int = 30) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sentences of which each has its own first id, also on the other side."""
    sizes = np.random.default_rng(seed).integers(1, longest + 1, (count, 2))
    sides = [[np.full(size, row + 1, np.int32) for row, size in enumerate(column)] for column in sizes.T]
    return sides[0], sides[1]
