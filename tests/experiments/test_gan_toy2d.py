"""GANs on points as a person trains them: a debug run that goes on, every remedy, misuse."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxai.errors import Stopped
from jaxai.train import Keys
from tests.experiments.commands import SCRIPTS, load, refusal, run, start, watched

SCRIPT = SCRIPTS / "gan_toy2d.py"
SMALL = {"gans": 2, "generator": (8,), "discriminator": (8,), "batch_size": 16}


@pytest.mark.slow
def test_debug_run_goes_on(tmp_path):
    workdir = tmp_path / "run"
    for steps in ("20", "40"):
        result = run(SCRIPT, workdir, "--steps", steps)
        assert result.returncode == 0, result.stderr
    assert "going on from step 20" in result.stderr
    assert "of 25" in result.stdout
    assert watched(workdir, 20)
    summary = json.loads((workdir / "summary.json").read_text())
    assert len(summary["modes"]) == len(summary["kl"]) == 2
    assert summary["real_high_quality"] == pytest.approx(0.989, abs=0.005)
    with Image.open(workdir / "training.gif") as animation:
        assert animation.n_frames >= 2
    with Image.open(workdir / "points.png") as picture:
        assert picture.size[0] > picture.size[1] > 100


@pytest.mark.slow
def test_a_collapsed_run_stops_or_goes_back(tmp_path):
    """Two tiny GANs are at one place after 20 steps; new noise changes nothing about that."""
    result = run(SCRIPT, tmp_path / "run", "--on-collapse", "stop", "--collapse-after", "20")
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("stopped: "))
    assert "step 20: the generator has collapsed" in line
    with pytest.raises(Stopped, match="already rolled back 3 times"):
        start(load(SCRIPT), tmp_path / "run", "--on-collapse", "rollback", "--collapse-after", "20")
    rollbacks = json.loads((tmp_path / "run" / "rollbacks.json").read_text())["rollbacks"]
    assert [rollback["to"] for rollback in rollbacks] == [0, 0, 0]


@pytest.mark.parametrize(
    "remedy",
    [
        {"penalty": "r1"},
        {"penalty": "wgan_gp", "penalty_weight": 10.0},
        {"penalty": "dragan"},
        {"penalty": "consistency", "penalty_weight": 1000.0},
        {"penalty": "approximate_r1_r2"},
        {"noise": 0.5},
        {"packing": 2},
        {"minibatch_stddev": True},
        {"spectral": True},
        {"unroll": 2},
        {"loss": "least_squares"},
        {"ema_half_life": 1000.0},
    ],
    ids=lambda remedy: ",".join(map(str, remedy.values())),
)
@pytest.mark.grid(fast=1)
def test_every_remedy_changes_the_training(remedy):
    experiment = load(SCRIPT)
    plain = experiment.Config(**SMALL, loss="relativistic")
    points = {"points": jax.random.normal(jax.random.key(1), (2, 16, 2))}

    def two_steps(config):
        trainer = experiment.trainer(config)
        step = jax.jit(trainer.step)
        state, _ = step(jax.jit(partial(trainer.init, Keys(config.seed)))(), points)
        return step(state, points)

    (state, metrics), (other, _) = two_steps(dataclasses.replace(plain, **remedy)), two_steps(plain)
    assert all(jnp.isfinite(value) for value in metrics.values())
    if "ema_half_life" in remedy:
        assert other.ema_params is None
        other = dataclasses.replace(other, generator=state.ema_params)
    kernel, before = (np.asarray(jax.tree.leaves(x.generator)[-1]) for x in (state, other))
    assert np.abs(kernel - before).max() > 1e-7


def test_the_penalty_keeps_its_weight_unless_another_end_is_given():
    experiment = load(SCRIPT)
    points = {"points": jax.random.normal(jax.random.key(1), (2, 16, 2))}

    def late_loss(**changes):
        config = experiment.Config(**SMALL, penalty="r1", penalty_weight=10.0, decay_steps=100, **changes)
        trainer = experiment.trainer(config)
        state = jax.jit(partial(trainer.init, Keys(config.seed)))().replace(step=jnp.full(2, 100))
        _, metrics = jax.jit(trainer.step)(state, points)
        return float(metrics["discriminator_loss"]), float(metrics["penalty"])

    (same, penalty), (none, _) = late_loss(), late_loss(final_penalty_weight=0.0)
    assert same - none == pytest.approx(10 * penalty, rel=1e-4)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    experiment = load(SCRIPT)
    for arguments, word in [
        (["--packing", "3"], "--packing 3 does not divide --batch-size 128"),
        (["--minibatch-stddev", "--batch-size", "20"], "--minibatch-stddev"),
        (["--gans", "0"], "--gans"),
        (["--noise", "-1"], "--noise"),
        (["--noise", "inf"], "--noise must be finite"),
        (["--penalty-weight", "nan"], "--penalty-weight"),
        (["--generator-optimizer.warmup", "9000"], "warmup"),
        (["--gans", "2", "--devices", "4"], "--gans 2 does not divide over 4 devices"),
        (["--generator", "0"], "give positive numbers"),
        (["--mixture", "torus"], "torus"),
    ]:
        assert word in refusal(capsys, partial(start, experiment, tmp_path / "run", *arguments))
    assert not (tmp_path / "run").exists()
