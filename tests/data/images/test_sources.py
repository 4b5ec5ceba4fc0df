"""``load``: names, the order of look-up, what it says, and what happens without a network."""

import logging
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import jaxai.data
from jaxai.data.images import prepare as prepare
from tests.data.idx_files import write_idx


def test_embedded_mnist_without_a_network(caplog):
    caplog.set_level(logging.INFO, "jaxai.data")
    dataset = jaxai.data.load("mnist", "train")
    assert dataset.source == "mnist train: 4,500 embedded digits (subset of MNIST; for all 60,000 pass --data-dir)"
    assert caplog.messages == [dataset.source]
    assert dataset.images.shape == (4_500, 28, 28, 1)
    assert dataset.num_classes == 10
    assert not dataset.images.flags.writeable
    assert not dataset.labels.flags.writeable
    assert "10,000" in jaxai.data.load("mnist", "test").source


def test_fingerprint_tells_data_apart():
    train = jaxai.data.load("mnist", "train")
    assert train.fingerprint == jaxai.data.load("mnist", "train").fingerprint
    assert train.fingerprint != jaxai.data.load("mnist", "test").fingerprint
    assert len(train.fingerprint) == 16


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_no_network_names_the_three_ways_out(name, monkeypatch):
    monkeypatch.setattr(prepare, "prepare", lambda *_: pytest.fail("tried to download, which takes minutes"))
    with pytest.raises(FileNotFoundError) as caught:
        jaxai.data.load(name, "train")
    message = str(caught.value)
    assert "\n" not in message
    for part in (name, "HTTPS_PROXY", "--data-dir DIR", f"python -m jaxai.data prepare {name} --from DIR"):
        assert part in message


def test_a_hanging_name_lookup_does_not_block(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name)
        monkeypatch.delenv(name.lower())
    monkeypatch.setattr(prepare, "PROBE_SECONDS", 0.2)
    returned, answers = threading.Event(), []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.append(returned.wait(60)))
    with pytest.raises(FileNotFoundError, match="no network"):
        jaxai.data.load("cifar10", "test")
    assert not answers
    returned.set()


def test_a_silent_proxy_does_not_block(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.setenv("https_proxy", proxy)
        monkeypatch.setattr(prepare, "PROBE_SECONDS", 0.2)
        assert not prepare.reachable("cifar10")  # else it would wait for the answer for ever


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mnits", "mnist"),
        ("MNIST", "mnist"),
        ("fashion-mnist", "fashion_mnist"),
        ("cifar", "cifar10"),
        ("digits", "digits8x8"),
    ],
)
def test_unknown_name_offers_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"name '{name}' is unknown.*did you mean '{nearest}'.*mnist, fashion_mnist"):
        jaxai.data.load(name, "train")


def test_unknown_name_without_a_near_one():
    with pytest.raises(ValueError, match=r"name 'qqqq' is unknown here; choose one of: mnist"):
        jaxai.data.load("qqqq", "train")


def test_unknown_split():
    with pytest.raises(
        ValueError, match=r"split 'trian' is unknown \(did you mean 'train'\?\); choose one of: train, test"
    ):
        jaxai.data.load("mnist", "trian")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "digits8x8"])
def test_missing_folder(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"data_dir \(--data-dir\) .*nowhere does not exist; give the folder"):
        jaxai.data.load(name, "train", data_dir=tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(FileNotFoundError, match="x is not a folder"):
        jaxai.data.load("mnist", "train", data_dir=tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "file"),
    [("mnist", "t10k-images-idx3-ubyte"), ("fashion_mnist", "t10k-labels-idx1-ubyte"), ("cifar10", "test_batch.bin")],
)
def test_a_folder_without_the_set_is_an_error_not_a_download(tmp_path, monkeypatch, name, file):
    monkeypatch.setattr(prepare, "reachable", lambda name: pytest.fail("went to the network"))
    with pytest.raises(FileNotFoundError) as caught:
        jaxai.data.load(name, "test", data_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), file, f"python -m jaxai.data prepare {name}", "leave --data-dir out"):
        assert part in message


def test_digits8x8_come_from_scikit_learn(tmp_path):
    train, test = (jaxai.data.load("digits8x8", split, data_dir=tmp_path) for split in ("train", "test"))
    assert train.images.shape == (1_500, 8, 8, 1)
    assert test.images.shape == (297, 8, 8, 1)
    assert train.images.max() == 255
    assert set(np.unique(test.labels)) == set(range(10))
    assert train.fingerprint == "05682912ccf0a64a"


def test_a_failing_download_falls_back_to_the_embedded_digits(monkeypatch, caplog):
    def refuse(*args):
        raise OSError("the server said no")

    monkeypatch.setattr(prepare, "reachable", lambda name: True)
    monkeypatch.setattr(prepare, "prepare", refuse)
    assert "embedded" in jaxai.data.load("mnist", "train").source
    assert "the embedded digits: the server said no" in caplog.text
    with pytest.raises(FileNotFoundError, match="the server said no"):
        jaxai.data.load("cifar10", "train")


def test_embedded_and_official_paths_import_little(tmp_path):
    """A run that needs no tensorflow-datasets does not pay for it."""
    write_idx(tmp_path)
    program = (
        "import sys, jaxai.data; jaxai.data.load('mnist', 'train');"
        f"jaxai.data.load('mnist', 'train', data_dir={str(tmp_path)!r});"
        "print(sorted({'tensorflow_datasets', 'tensorflow', 'grain', 'sklearn', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


def test_embedded_only_looks_nowhere_else(official_mnist):
    dataset = jaxai.data.load("mnist", "test", data_dir=official_mnist, embedded_only=True)
    assert (dataset.embedded, len(dataset.labels)) == (True, 500)
    assert not jaxai.data.load("mnist", "test", data_dir=official_mnist).embedded
    with pytest.raises(ValueError, match="the package carries no cifar10"):
        jaxai.data.load("cifar10", "test", embedded_only=True)
