"""``python -m jaxai.data`` as a person runs it."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jaxai.data
from jaxai.data import __main__
from tests.data.idx_files import idx_bytes, write_idx


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "jaxai.data", *map(str, arguments)]
    return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def refused(capsys, monkeypatch) -> Callable[..., str]:
    """Call the command in this process, assert exit code 2 and one line on standard error; return the line."""

    def refused(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["data", *map(str, arguments)])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as end:
            __main__.main()
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return refused


def test_show():
    done = command("show", "mnist", "--split", "test")
    assert done.returncode == 0
    assert done.stdout.startswith("mnist test: 500 embedded digits")
    assert "[500, 28, 28, 1]" in done.stdout
    assert done.stderr == ""


def test_no_network(refused):
    assert "Three ways out" in refused("show", "fashion_mnist")


def test_unknown_name_and_split(refused):
    assert "did you mean 'mnist'" in refused("show", "mnits")
    assert "did you mean 'train'" in refused("show", "mnist", "--split", "trainn")


def test_missing_folders(refused, tmp_path):
    assert "does not exist" in refused("show", "mnist", "--data-dir", tmp_path / "nowhere")
    assert "no such folder" in refused("prepare", "mnist", "--from", tmp_path / "nowhere", "--data-dir", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content, labels: b"not idx", "wrong magic number"),
        (lambda content, labels: content[:-1], "truncated"),
        (lambda content, labels: labels, "labels"),
        (lambda content, labels: idx_bytes(np.zeros((60, 20, 20))), "20"),
    ],
    ids=["magic", "truncated", "mislabelled", "shape"],
)
def test_damaged_file(refused, tmp_path, damage, message):
    write_idx(tmp_path, packed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes(), (tmp_path / "train-labels-idx1-ubyte").read_bytes()))
    line = refused("show", "mnist", "--data-dir", tmp_path)
    assert message in line
    assert path.name in line


def test_wrong_checksum(refused, tmp_path):
    source = write_idx(tmp_path / "official")
    assert "wrong checksum" in refused("prepare", "mnist", "--from", source, "--data-dir", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


def test_full_disk(tmp_path):
    """The whole program, its files limited to 1,000 bytes, with the checksums of small files."""
    source = write_idx(tmp_path / "official")
    program = f"""
import pathlib, resource, sys
from tensorflow_datasets.core.download.checksums import compute_url_info
from jaxai.data import __main__
from jaxai.data.images import prepare
infos = {{f"http://files.invalid/{{p.name}}": compute_url_info(p) for p in pathlib.Path({str(source)!r}).iterdir()}}
prepare._url_infos = lambda name: infos
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.argv = ["data", "prepare", "mnist", "--from", {str(source)!r}, "--data-dir", {str(tmp_path / "out")!r}]
__main__.main()
"""
    done = subprocess.run([sys.executable, "-B", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "free space on that disk" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


@pytest.mark.slow
def test_prepare_all_60000(tmp_path, official_mnist):
    done = command("prepare", "mnist", "--from", official_mnist.parent, "--data-dir", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/mnist/3.0.1: prepared mnist\n"
    again = command("prepare", "mnist", "--from", official_mnist, "--data-dir", tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert "already prepared, left as it is" in again.stdout

    prepared, official = (jaxai.data.load("mnist", "test", data_dir=path) for path in (tmp_path, official_mnist))
    assert sorted(map(bytes, prepared.images)) == sorted(map(bytes, official.images))

    import tensorflow_datasets

    source = tensorflow_datasets.data_source(
        "mnist",
        data_dir=tmp_path,
        download=False,
        builder_kwargs={"file_format": "array_record"},
    )
    assert len(source["train"]) == 60_000
    for row in (0, 1, 9_999):
        np.testing.assert_array_equal(source["test"][row]["image"], prepared.images[row])
        assert source["test"][row]["label"] == prepared.labels[row]


@pytest.mark.parametrize("arguments", [[], ["prepare", "mnist"], ["show"], ["--nonsense"]])
def test_usage_errors(refused, arguments):
    assert refused(*arguments)
