"""Bad input for the classifier: one line that names it, exit code 2, and nothing on the disk changes."""

import dataclasses
import json
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.errors import ScopeParamShapeError

from jaxai import cli
from jaxai.data import ImageDataset, load
from jaxai.data.images import official
from jaxai.nn.cnn import ArticleCNN
from jaxai.run.checkpoint import Checkpoints
from jaxai.run.folder import open_run
from jaxai.train.optim import Adam, Airbench
from jaxai.train.supervised import init_state
from tests.data.idx_files import cifar_bytes, idx_bytes, write_idx
from tests.experiments import commands

SCRIPT = commands.SCRIPTS / "cnn_cifar10.py"
EXPERIMENT = commands.load(SCRIPT)


def config(folder, **changes):
    return dataclasses.replace(EXPERIMENT.PRESETS["debug"], preset="debug", workdir=folder, **changes)


def tree(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def refusal(asked, capsys) -> str:
    """The one line with which the command ends."""
    with pytest.raises(SystemExit) as stop:
        cli.guard(lambda: commands.train(EXPERIMENT, asked))
    assert stop.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize(
    ("name", "changes", "difference"),
    [
        ("digit_classifier", {}, "experiment = digit_classifier, not cnn_cifar10"),
        ("cnn_cifar10", {"dataset": "fashion_mnist"}, "dataset = fashion_mnist, not mnist"),
        ("cnn_cifar10", {"batch_size": 32}, "batch_size = 32, not 64"),
        ("cnn_cifar10", {"optimizer": Adam(beta1=0.5)}, "optimizer.beta1 = 0.5, not 0.9"),
    ],
)
def test_folder_of_another_run(tmp_path, capsys, name, changes, difference):
    data = load("mnist", "train", embedded_only=True)
    open_run(name, config(tmp_path, **changes), data.identity())
    before = tree(tmp_path)
    assert f"{tmp_path} holds a run with {difference}: use another --workdir" in refusal(config(tmp_path), capsys)
    assert tree(tmp_path) == before


def test_folder_of_a_run_on_other_images(tmp_path, capsys):
    data = load("mnist", "train", data_dir=write_idx(tmp_path / "few", train=64))
    open_run("cnn_cifar10", config(tmp_path / "run"), data.identity())
    asked = config(tmp_path / "run", data_dir=write_idx(tmp_path / "more", train=65))
    assert f"data.fingerprint = {data.fingerprint}, not " in refusal(asked, capsys)


@pytest.mark.slow
def test_checkpoint_of_another_network(tmp_path):
    """The folder of a run on grey digits with the checkpoint of a network that was trained in colour."""
    run = open_run("cnn_cifar10", config(tmp_path / "run"), load("mnist", "train", embedded_only=True).identity())
    params = ArticleCNN().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    with closing(Checkpoints(run.checkpoints)) as checkpoints:
        checkpoints.save(20, init_state(params, optax.adam(1e-3), jax.random.key(0)), {})
    before = tree(run.folder)
    result = commands.run(SCRIPT, run.folder)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert (
        f"{run.checkpoints}/20 is a checkpoint of another model: params/conv_0/kernel is float32[3, 3, 3, 32]" in line
    )
    assert "not float32[3, 3, 1, 32]" in line
    assert tree(run.folder) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (cifar_bytes(20)[:-1], "data_batch_4.bin: truncated: 61,459 bytes"),
        (b"", "data_batch_4.bin: truncated: 0 bytes"),
        (cifar_bytes(21), "data_batch_4.bin: too long"),
        (b"\xc8" + cifar_bytes(20)[1:], "data_batch_4.bin: label 200 is outside 0..9"),
    ],
)
def test_damaged_images(tmp_path, capsys, monkeypatch, content, message):
    monkeypatch.setattr(official, "CIFAR_RECORDS", 20)
    for file in (*official.CIFAR_FILES["train"], *official.CIFAR_FILES["test"]):
        (tmp_path / file).write_bytes(cifar_bytes(20))
    (tmp_path / "data_batch_4.bin").write_bytes(content)
    asked = config(tmp_path / "run", dataset="cifar10", data_dir=tmp_path)
    assert message in refusal(asked, capsys)
    assert not (tmp_path / "run").exists()


def test_images_of_another_size(tmp_path, capsys):
    write_idx(tmp_path, train=64, packed=False)
    for images, shape in ((np.zeros((64, 32, 32)), "[32, 32, 1]"), (np.zeros((64, 28, 84)), "[28, 84, 1]")):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
        line = refusal(config(tmp_path / "run", data_dir=tmp_path), capsys)
        assert f"train-images-idx3-ubyte and train-labels-idx1-ubyte: images are uint8 {shape}, but mnist has" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_classes_without_examples_are_named_in_the_summary(tmp_path):
    """A test split of zeros and nines; by itself scikit-learn would warn of what it can't define."""
    folder = write_idx(tmp_path / "data", train=64, test=20, packed=False)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(20) % 2 * 9))
    options = ["--data-dir", str(folder), "--steps", "2", "--checkpoint-every", "2"]
    result = commands.run(SCRIPT, tmp_path / "run", *options)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]
    assert figures["missing_classes"] == ["1", "2", "3", "4", "5", "6", "7", "8"]
    assert [area is None for area in figures["auc_per_class"]] == [False] + [True] * 8 + [False]


def digits_of(side: int, channels: int) -> ImageDataset:
    images, labels = np.zeros((4, side, side, channels), np.uint8), np.zeros(4, np.int32)
    return ImageDataset("digits", "train", images, labels, 10, "made here", False, "")


@pytest.mark.parametrize(("recipe", "side"), [("article", 1), ("article", 17), ("airbench", 24)])
def test_images_too_small_for_the_network(recipe, side):
    config = EXPERIMENT.Config(recipe=recipe)
    with pytest.raises(
        ValueError, match=rf"--dataset digits has images of .*{side}, {side}.*(18 x 18|25 x 25)"
    ) as caught:
        EXPERIMENT.make_network(config, digits_of(side, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("recipe", "side"), [("article", 18), ("airbench", 25)])
def test_the_smallest_images_are_enough(recipe, side, key):
    network = EXPERIMENT.make_network(EXPERIMENT.Config(recipe=recipe), digits_of(side, 1))
    assert jax.eval_shape(network.init, key, jnp.zeros((1, side, side, 1)))


def test_too_small_images_are_named_by_the_network(key):
    with pytest.raises(ValueError, match="17 pixels, too few for 3 convolutions: give 18 at least"):
        jax.eval_shape(ArticleCNN().init, key, jnp.zeros((1, 17, 32, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_call": 0}, "--steps-per-call must be at least 1"),
        ({"accumulation_steps": 3}, "--accumulation-steps must divide --batch-size 64"),
        ({"optimizer": Adam(warmup=9000)}, "decay_steps 7812 must exceed warmup 9000"),
        ({"recipe": "airbench", "optimizer": Adam(beta1=0.5)}, r"--optimizer\.\* does nothing with --recipe airbench"),
        ({"airbench": Airbench(head_rate=0.5)}, r"--airbench\.\* does nothing with --recipe article"),
        ({"recipe": "airbench", "accumulation_steps": 2}, "--accumulation-steps 2 needs the default article network"),
        ({"recipe": "airbench", "steps_per_call": 8}, "--steps-per-call 8 needs the default article network"),
        ({"channels": (64, 64, 64), "steps_per_call": 8}, "--steps-per-call 8 needs the default article network"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        EXPERIMENT.Config(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 32, 32, 1), r"conv_0.*\(3, 3, 1, 32\).*\(3, 3, 3, 32\)"),
        ((2, 28, 28, 3), r"dense_0.*\(576, 64\).*\(1024, 64\)"),
    ],
)
def test_other_images_for_a_trained_network(key, shape, message):
    network = ArticleCNN()
    variables = jax.eval_shape(lambda: network.init(key, jnp.zeros((1, 32, 32, 3))))
    with pytest.raises(ScopeParamShapeError, match=message) as caught:
        jax.eval_shape(network.apply, variables, jnp.zeros(shape))
    assert "\n" not in str(caught.value)
