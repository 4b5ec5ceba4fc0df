"""A finished run as commands see it: its config, weights and vocabulary, and folders that hold none."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.config import Common, Finished
from jaxai.errors import MissingFileError, UserError
from jaxai.run.files import write_json
from jaxai.run.finished import FinishedRun, load_run
from jaxai.run.folder import open_run
from jaxai.run.weights import save_weights
from jaxai.train.optim import Adam

PARAMS = {"dense": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}}
WORDS = {"words": ["a", "b"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    width: int = 4
    widths: tuple[int, ...] = (1, 2)
    optimizer: Adam = Adam()


CONFIG = Config(width=8, widths=(3,), optimizer=Adam(beta1=0.5), seed=3)


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run with a vocabulary."""
    run = open_run("test", dataclasses.replace(CONFIG, workdir=tmp_path / "run"), {"name": "mnist"})
    save_weights(run.folder / "model.safetensors", PARAMS, run.identity, WORDS)
    write_json(run.folder / "vocabulary.json", WORDS)
    return run.folder


def load(folder, **options) -> FinishedRun[Config]:
    return load_run("test", Config, Finished(workdir=folder), **options)


def init_params(key):
    return jax.tree.map(lambda x: jax.random.normal(key, x.shape), PARAMS)


def test_a_finished_run_comes_back(folder):
    run = load(folder, vocabulary=True)
    assert run.folder == folder
    assert run.config == CONFIG
    assert run.identity == json.loads((folder / "config.json").read_text())
    assert run.vocabulary == WORDS
    jax.tree.map(np.testing.assert_array_equal, run.params(init_params), PARAMS)
    assert run.decode(lambda value: value["words"]) == ["a", "b"]


def test_a_run_is_found_by_its_preset(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "test").mkdir(parents=True)
    folder.rename(tmp_path / "runs" / "test" / "wide")
    assert load_run("test", Config, Finished(preset="wide")).config.width == 8


def test_a_vocabulary_is_read_where_it_is_asked_for(folder):
    (folder / "vocabulary.json").unlink()
    assert load(folder).vocabulary is None
    with pytest.raises(MissingFileError, match=r"run holds no finished run \(no vocabulary.json\): train one first"):
        load(folder, vocabulary=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_unfinished_run_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(
        MissingFileError, match=rf"holds no finished run \(no {name}\): train one first, or give --work"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json is damaged"),
        ("config.json", '{"data": {}, "seed": "a"}', "holds no run of this experiment"),
        ("config.json", '{"data": {}, "steps": 0}', "holds no run of this experiment"),
        ("config.json", '{"data": {}, "optimizer": {"beta1": 2.0}}', "holds no run of this experiment.*beta1"),
        ("vocabulary.json", '{"words": ', "holds no run of this experiment, or a damaged vocabulary.json"),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load(folder, vocabulary=True)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "read",
    [lambda value: value["letters"], lambda value: int("a"), lambda value: value + 1],
    ids=["key", "value", "type"],
)
def test_another_experiments_vocabulary_is_refused(folder, read):
    with pytest.raises(UserError, match=r"holds no run of this experiment, or a damaged vocabulary\.json"):
        load(folder, vocabulary=True).decode(read)


def test_weights_of_another_network_are_refused(folder):
    run = load(folder)
    with pytest.raises(ValueError, match=r"holds another model: dense.kernel is \(2, 3\), not \(2, 4\)"):
        run.params(lambda key: {"dense": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(3)}})


def test_weights_know_their_vocabulary(folder):
    write_json(folder / "vocabulary.json", {"words": ["b", "a"]})
    with pytest.raises(ValueError, match="was trained with another vocabulary"):
        load(folder, vocabulary=True).params(init_params)
    jax.tree.map(np.testing.assert_array_equal, load(folder).params(init_params), PARAMS)
