"""The GAN of Transformers as a person runs it, and what its step does with labels."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

from tests.experiments import commands

SCRIPT = commands.SCRIPTS / "transformer_gan.py"


@pytest.fixture(scope="module")
def experiment():
    """The script as a module, without running it."""
    return commands.load(SCRIPT)


@pytest.mark.slow
def test_debug_run_makes_everything(tmp_path):
    workdir = tmp_path / "run"
    result = commands.run(SCRIPT, workdir, "--conditional")
    assert result.returncode == 0, result.stderr
    for name in ("samples.png", "training.gif", "interpolation.png", "curves.png"):
        assert (workdir / name).stat().st_size
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 40
    assert 0 <= summary["right_class"] <= 1
    assert summary["mnist_fd_floor"] < summary["mnist_fd"]
    assert "of the requested class" in result.stdout
    sampled = commands.run_command(SCRIPT, workdir, "sample", "--workdir", str(workdir), "--label", "10")
    assert sampled.returncode == 2
    assert "--label 10: this run knows 0 to 9" in sampled.stderr
    line = "sample", "--workdir", str(workdir), "--label", "7", "--count", "3"
    sampled = commands.run_command(SCRIPT, workdir, *line)
    assert sampled.returncode == 0, sampled.stderr
    assert len(list((workdir / "images_0").iterdir())) == 4
    again = commands.run(SCRIPT, workdir, "--conditional")
    assert "this run is finished" in again.stderr
    assert again.stdout == result.stdout


@pytest.mark.parametrize(
    "networks",
    [("transformer", "transformer"), ("convolutional", "transformer"), ("transformer", "convolutional")],
    ids="-".join,
)
@pytest.mark.slow
def test_both_networks_learn_from_images_and_labels(experiment, networks):
    """One step moves every parameter of both; another label moves them elsewhere."""
    config = dataclasses.replace(
        experiment.PRESETS["debug"],
        **dict(zip(("generator", "discriminator"), networks, strict=True)),
        attention="convolutional" in networks,
        widths=(4, 4),
        conditional=True,
        batch_size=4,
    )
    step, init = commands.step_and_init(experiment.trainer(config, *experiment.networks(config)))
    state = jax.jit(init)()
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 255, (4, 28, 28, 1), np.uint8), "label": np.arange(4, dtype=np.int32)}
    step = jax.jit(step)
    state, _ = step(state, batch)
    new, _ = step(state, batch)  # the second step: layers that start at zero hide those below them
    other, _ = step(state, batch | {"label": batch["label"] + 1})
    for name in ("generator", "discriminator"):
        before, after, elsewhere = (getattr(x, name) for x in (state, new, other))
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
        leaves = jax.tree_util.tree_leaves_with_path(moved)
        still = [jax.tree_util.keystr(path, simple=True, separator=".") for path, leaf in leaves if not leaf]
        # the loss sees differences of logits: their bias has no part in them
        assert still == (["Dense_1.bias"] if name == "discriminator" else [])
        assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), after, elsewhere)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patch", "5"], "--patch 5 does not divide images of 28x28"),
        (["--attention"], "--attention is for convolutional networks"),
        (["--widths", "8", "8", "8"], "--widths must be one or two positive numbers"),
        (["--transformer.position", "rotary"], "--transformer.position must be learned"),
        (["--ema-half-life", "-1"], "--ema-half-life must be at least 0"),
        (["--dataset", "svhn"], "--dataset"),
    ],
)
def test_bad_input_is_one_line(experiment, arguments, message, tmp_path, capsys):
    assert message in commands.refusal(capsys, partial(commands.start, experiment, tmp_path / "run", *arguments))
    assert not (tmp_path / "run").exists()
