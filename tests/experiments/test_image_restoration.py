"""Image restoration as a person runs it, each task and both losses."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxai import gan, plots
from jaxai.data import load
from jaxai.ops import to_signed, upscaled
from jaxai.run.weights import read_weights
from jaxai.train import Keys
from tests.experiments import commands

SCRIPT = commands.SCRIPTS / "image_restoration.py"


@pytest.fixture(scope="module")
def experiment():
    """The script as a module, without running it."""
    return commands.load(SCRIPT)


@pytest.mark.parametrize("arguments", [[], ["--dataset", "photos", "--task", "super_resolution", "--no-adversarial"]])
@pytest.mark.slow
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
    made = gan.restorer_commands(experiment.NAME, experiment.Config, experiment.trained_restorer)
    commands.start_command(*made["restore"], "--workdir", str(workdir), *arguments)


@pytest.mark.slow
def test_a_finished_run_restores_files(experiment, runs, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(256, size=(13, 9, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    restore(experiment, runs / "photos", "--image", str(tmp_path / "photo.png"))
    assert "photo_restored.png" in capsys.readouterr().out
    large = upscaled(to_signed(jnp.asarray(pixels[None])), 2)
    expected = whole_by_hand(experiment, runs / "photos", np.asarray(large))
    with Image.open(runs / "photos" / "photo_restored.png") as picture:
        np.testing.assert_allclose(np.asarray(picture, float), expected, atol=1)  # rounding to pixels
    holed = np.dstack([pixels[..., :1], np.full((13, 9, 1), 255, np.uint8)])
    holed[2:7, 3:6, 1] = 0
    Image.fromarray(holed, "LA").save(tmp_path / "digit.png")
    out = tmp_path / "new" / "a.png"
    restore(experiment, runs / "holes", "--image", str(tmp_path / "digit.png"), "--out", str(out))
    known = holed[..., 1:] > 0
    digit = np.where(known[None], np.asarray(to_signed(jnp.asarray(holed[None, ..., :1]))), 0)
    padded, mask = (np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge") for x in (digit, ~known[None]))
    expected = whole_by_hand(experiment, runs / "holes", padded, mask.astype(np.float32))[:13, :9]
    with Image.open(out) as picture:
        np.testing.assert_allclose(np.asarray(picture, float)[..., None], expected, atol=1)
        np.testing.assert_array_equal(np.asarray(picture)[known[..., 0]], holed[..., 0][known[..., 0]])


def whole_by_hand(experiment, folder, images, mask=None):
    """The pixels of a run's network for one image of even sides, by Flax alone."""
    restorer, images = gan.Restorer(8, 1), jnp.asarray(images)
    hints = [] if mask is None else [jnp.asarray(mask)]
    like = jax.eval_shape(restorer.init, jax.random.key(0), images, *hints)["params"]
    params = jax.tree.map(jnp.asarray, read_weights(folder / "model.safetensors", like))
    found = restorer.apply({"params": params}, images, *hints)
    found = found if mask is None else np.where(mask > 0, found, images)
    return (np.clip(np.asarray(found), -1, 1)[0] + 1) * 127.5


@pytest.mark.slow
def test_what_cannot_be_restored_is_one_line(experiment, runs, tmp_path, capsys):
    picture, text = tmp_path / "photo.png", tmp_path / "text.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    text.write_text("no image")
    deep, broken, large = tmp_path / "deep.png", tmp_path / "broken.png", tmp_path / "large.png"
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep)
    broken.write_bytes(picture.read_bytes()[:40])
    Image.fromarray(np.zeros((2100, 2100), np.uint8)).save(large)
    for workdir, image, more, word in [
        ("photos", tmp_path / "none.png", [], "none.png is missing: give an image file"),
        ("photos", text, [], "text.png can't be read as an image"),
        ("holes", picture, [], "photo.png has no hole: make the missing part transparent"),
        ("photos", deep, [], "deep.png has more than 8 bits a channel"),
        ("photos", broken, [], "broken.png can't be read as an image"),
        ("photos", large, [], "4200x4200 pixels when restored, give one of at most 16,777,216"),
        ("photos", picture, ["--out", str(text)], "text.png is there already: give another --out"),
        ("photos", picture, ["--out", str(tmp_path / "new.jpg")], "new.jpg is no .png: give another --out"),
        ("photos", picture, ["--out", str(text / "new.png")], "text.png can't be a folder"),
        ("none", picture, [], "holds no finished run"),
    ]:
        action = partial(restore, experiment, runs / workdir, "--image", str(image), *more)
        assert word in commands.refusal(capsys, action)


@pytest.mark.parametrize("task", ["inpainting", "denoising", "super_resolution", "contrast"])
@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.grid(fast=1)
def test_every_task_comes_closer_to_the_originals(experiment, task, adversarial):
    """Some steps on eight images, which the network then restores better than it got them."""
    config = dataclasses.replace(
        experiment.PRESETS["debug"], task=task, adversarial=adversarial, width=16, decay_steps=400
    )
    trainer = experiment.trainer(config, (28, 28, 1))
    images = load("mnist", "test", embedded_only=True).images[:8]
    state, step = jax.jit(partial(trainer.init, Keys(0)))(), jax.jit(trainer.step, donate_argnums=0)
    for _ in range(60):
        state, _ = step(state, {"image": images})
    found = jax.device_get(jax.jit(partial(experiment.damage_and_restore, config))(trainer.params(state), images))
    damaged, restored = map(plots.to_pixels, found)
    before, after = (np.abs(x.astype(float) - images).mean() for x in (damaged, restored))
    assert after < 0.9 * before
    if task == "inpainting":
        _, mask = jax.jit(config.damage)(to_signed(images), Keys(config.seed).evaluation)
        known = np.asarray(mask) == 0
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
def test_bad_input_is_one_line(experiment, arguments, message, tmp_path, capsys):
    assert message in commands.refusal(capsys, partial(commands.start, experiment, tmp_path / "run", *arguments))
    assert not (tmp_path / "run").exists()
