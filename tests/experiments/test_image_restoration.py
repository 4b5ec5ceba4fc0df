"""Image restoration as a person runs it, each task and both losses."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs: one fills holes in digits, the other doubles the size of photographs."""
    folder = tmp_path_factory.mktemp("runs")
    script = commands.load(SCRIPT)
    short = ["--no-adversarial", "--steps", "2"]
    commands.start(script, folder / "holes", *short)
    commands.start(script, folder / "photos", *short, "--dataset", "photos", "--task", "super_resolution")
    return folder


def restore(experiment, workdir, *arguments):
    commands.start_command(experiment.restore_file, experiment.RestoreFile, "--workdir", str(workdir), *arguments)


def test_a_finished_run_restores_files(experiment, runs, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(256, size=(13, 9, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    restore(experiment, runs / "photos", "--image", str(tmp_path / "photo.png"))
    assert "photo_restored.png" in capsys.readouterr().out
    with Image.open(runs / "photos" / "photo_restored.png") as picture:
        assert (picture.size, picture.mode) == ((18, 26), "RGB")
    holed = np.dstack([pixels[..., :1], np.full((13, 9, 1), 255, np.uint8)])
    holed[2:7, 3:6, 1] = 0
    Image.fromarray(holed, "LA").save(tmp_path / "digit.png")
    out = tmp_path / "new" / "a.png"
    restore(experiment, runs / "holes", "--image", str(tmp_path / "digit.png"), "--out", str(out))
    with Image.open(out) as picture:
        known = holed[..., 1] > 0
        np.testing.assert_array_equal(np.asarray(picture)[known], holed[..., 0][known])


def test_what_cannot_be_restored_is_one_line(experiment, runs, tmp_path, capsys):
    picture, text = tmp_path / "photo.png", tmp_path / "text.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    text.write_text("no image")
    for workdir, image, more, word in [
        ("photos", tmp_path / "none.png", [], "none.png is missing: give an image file"),
        ("photos", text, [], "text.png can't be read as an image"),
        ("holes", picture, [], "photo.png has no hole: make transparent what is missing"),
        ("photos", picture, ["--out", str(text)], "text.png is there already: give another --out"),
        ("none", picture, [], "holds no finished run"),
    ]:
        action = partial(restore, experiment, runs / workdir, "--image", str(image), *more)
        assert word in commands.refusal(capsys, action)


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
