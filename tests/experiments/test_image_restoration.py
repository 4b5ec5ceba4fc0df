"""Image restoration as a person runs it, each task and both losses."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.experiments import commands

SCRIPT = commands.SCRIPTS / "image_restoration.py"


@pytest.fixture(scope="module")
def experiment():
    """The script as a module, without running it."""
    return commands.load(SCRIPT)


@pytest.mark.parametrize("arguments", [[], ["--dataset", "photos", "--task", "super_resolution", "--no-adversarial"]])
def test_debug_run_makes_everything(tmp_path, arguments):
    workdir = tmp_path / "run"
    result = commands.run(SCRIPT, workdir, *arguments)
    assert result.returncode == 0, result.stderr
    for name in ("restored.png", "curves.png", "model.safetensors", "samples/step_000010.png"):
        assert (workdir / name).stat().st_size
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 20
    assert ("same_class" in summary["restored"]) == (not arguments)
    assert ("bicubic" in result.stdout) == bool(arguments)
    again = commands.run(SCRIPT, workdir, *arguments)
    assert "this run is finished" in again.stderr
    assert again.stdout == result.stdout


@pytest.mark.parametrize("task", ["inpainting", "denoising", "super_resolution", "contrast"])
@pytest.mark.parametrize("adversarial", [False, True])
def test_every_task_comes_closer_to_the_originals(experiment, task, adversarial):
    """Some steps on eight images, which the network then restores better than it got them."""
    config = dataclasses.replace(experiment.PRESETS["debug"], task=task, adversarial=adversarial, width=16, horizon=400)
    damage, restorer = experiment.damaging(config), experiment.Restorer(config.width, config.blocks)
    step, init = experiment.training(config, restorer, damage, (28, 28, 1))
    images = experiment.load("mnist", "test", embedded_only=True).images[:8]
    state, step = jax.jit(init)(), jax.jit(step, donate_argnums=0)
    for _ in range(60):
        state, _ = step(state, {"image": images})
    damaged, restored = experiment.Restore(restorer, damage, 0)(experiment.parameters(state), images)
    before, after = (np.abs(x.astype(float) - images).mean() for x in (damaged, restored))
    assert after < 0.9 * before
    if task == "inpainting":
        known = np.asarray(damage(experiment.preprocess(images), jax.random.key(0))[1]) == 0
        np.testing.assert_array_equal(restored[known], images[known])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "3"], "--scale must be 2 or 4"),
        (["--crop", "18"], "--crop must be a multiple of 4"),
        (["--weight", "0"], "--weight must be positive"),
        (["--widths", "8"], "--widths must be two positive numbers"),
        (["--task", "colour"], "--task"),
        (["--dataset", "photos", "--crop", "404"], "size is 404, but coffee is 400x600"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path):
    result = commands.run(SCRIPT, tmp_path / "run", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
