"""The main job as a person runs it: end to end, interrupted, resumed, misused."""

import dataclasses
import json
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxai.data import load
from jaxai.data.pipeline import batches
from jaxai.distributed.mesh import make_mesh
from jaxai.distributed.sharding import batch_sharding, put_batch, state_sharding
from jaxai.gan import generator_commands
from tests.experiments import commands
from tests.helpers import hex_losses

SCRIPT = commands.SCRIPTS / "gan_mnist.py"
FILES = ["samples.png", "training.gif", "interpolation.png", "curves.png", "summary.json", "config.json"]


@pytest.fixture(scope="module")
def experiment():
    """The script as a module, without running it."""
    return commands.load(SCRIPT)


def run(workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run(SCRIPT, workdir, *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A debug run from start to end."""
    workdir = tmp_path_factory.mktemp("gan") / "run"
    return workdir, run(workdir)


def test_debug_run_makes_everything(finished):
    workdir, result = finished
    assert result.returncode == 0, result.stderr
    assert "embedded" in result.stderr
    assert "compiled the training step in" in result.stderr
    assert "steps/s" in result.stderr
    assert all((workdir / name).stat().st_size for name in FILES)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 40
    assert sum(summary["histogram"]) == summary["samples"] == 2500
    assert 0 <= summary["mnist_fd_floor"] < summary["mnist_fd"]
    for word in ("samples.png", "histogram", "MNIST-FD", "real against real", "precision", "coverage"):
        assert word in result.stdout
    assert [step for step, *_ in hex_losses(workdir / "metrics.jsonl")] == list(range(1, 41))
    assert commands.watched(workdir, 20)
    with Image.open(workdir / "training.gif") as animation:
        assert animation.n_frames == len(list((workdir / "samples").iterdir())) == 3


def test_finished_run_says_so_and_changes_nothing(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    result = run(workdir)
    assert result.returncode == 0
    assert "this run is finished" in result.stderr
    assert "MNIST-FD" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_a_finished_run_draws_and_inverts(finished, tmp_path, capsys):
    workdir, _ = finished
    experiment = commands.load(SCRIPT)
    card = (workdir / "README.md").read_text()
    assert "mnist_fd" in card
    assert "library_name: jaxai" in card
    made = generator_commands(experiment.NAME, experiment.Config, experiment.trained_generator)
    draw = partial(commands.start_command, *made["sample"], "--workdir", str(workdir), "--count", "12")
    draw("--out", str(tmp_path / "some"))
    draw("--out", str(tmp_path / "tame"), "--truncation", "0.001")
    assert len(list((tmp_path / "some").iterdir())) == 13
    some, tame = (
        np.stack([np.asarray(Image.open(tmp_path / name / f"{i:05d}.png"), float) for i in range(12)])
        for name in ("some", "tame")
    )
    assert some.shape == (12, 28, 28)
    assert tame.std(0).mean() < 0.5 * some.std(0).mean()
    for arguments, word in [
        (["--out", str(tmp_path / "some")], "is there already: give another --out"),
        (["--label", "3"], "--label 3: this run knows no classes"),
        (["--count", "0"], "--count must be at least 1"),
        (["--workdir", str(tmp_path)], "holds no finished run"),
    ]:
        assert word in commands.refusal(capsys, partial(draw, *arguments))
    commands.start_command(*made["invert"], "--workdir", str(workdir), "--count", "3", "--steps", "20")
    assert "mean squared difference 0." in capsys.readouterr().out
    with Image.open(workdir / "inverted.png") as picture:
        assert picture.size == (2 * (3 * 29 - 1), 2 * (2 * 29 - 1))


@pytest.mark.slow
def test_killed_run_goes_on_bit_for_bit(finished, tmp_path):
    """SIGKILL after the first checkpoint, then the same command."""
    workdir = tmp_path / "run"
    with subprocess.Popen(
        commands.command(SCRIPT, workdir, "--checkpoint-every", "20"),
        env=commands.environment(workdir),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as job:
        deadline = time.monotonic() + 120
        while not (workdir / "checkpoints" / "20").exists() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
    assert job.returncode == -signal.SIGKILL
    result = run(workdir)
    assert result.returncode == 0, result.stderr
    assert re.search("going on from step (20|40)", result.stderr)
    whole, _ = finished
    assert hex_losses(workdir / "metrics.jsonl") == hex_losses(whole / "metrics.jsonl")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (workdir, whole)]
    assert summaries[0]["mnist_fd"] == summaries[1]["mnist_fd"]


@pytest.mark.slow
def test_four_devices_with_sharded_parameters_give_the_losses_of_one(finished, tmp_path):
    result = run(tmp_path / "run", "--devices", "4", "--shard-parameters", "--steps", "3")
    assert result.returncode == 0, result.stderr
    losses = {}
    for name, folder in {"four": tmp_path / "run", "one": finished[0]}.items():
        lines = hex_losses(folder / "metrics.jsonl")[:3]
        losses[name] = [[float.fromhex(a), float.fromhex(b)] for _, a, b in lines]
    # The promise is 1e-5. Three steps in float32, because training multiplies the last bit: after five, 2e-4 was seen
    # (1e-7 in float64, see the next test).
    np.testing.assert_allclose(losses["four"], losses["one"], rtol=1e-5)


@pytest.mark.slow
def test_four_devices_differ_from_one_by_rounding_alone(experiment):
    """The same five steps in float64, where rounding can't hide a wrong sum."""
    config, losses = experiment.PRESETS["debug"], {}
    train = load("mnist", "train", embedded_only=True)
    with jax.enable_x64(True):
        networks = [network.clone(dtype=jnp.float64) for network in experiment.networks(config)]
        step, init = commands.step_and_init(experiment.trainer(config, *networks))
        state = jax.tree.map(lambda x: x.astype("float64") if x.dtype == jnp.float32 else x, init())
        for devices in (1, 4):
            mesh, rows = make_mesh(devices), batches(train, config.batch_size, seed=0)
            shardings = state_sharding(state, mesh, shard_parameters=devices > 1)
            jitted, current, losses[devices] = jax.jit(step, out_shardings=(shardings, None)), state, []
            current = jax.device_put(current, shardings)
            for _ in range(5):
                current, metrics = jitted(current, put_batch(next(rows), batch_sharding(mesh)))
                losses[devices].append([float(metrics[f"{name}_loss"]) for name in ("discriminator", "generator")])
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "1"], ["seed = 0, not 1", "--workdir", "--resume never"]),
        (["--preset", "defualt"], ["--preset defualt", "did you mean default"]),
        (["--batch-size", "0"], ["--batch-size must be at least 1"]),
        (["--widths", "8", "8", "8"], ["--widths must be one or two"]),
        (["--data-dir", "/nowhere"], ["/nowhere"]),
        (["--network", "capsule"], ["--network"]),
        (["--optimizer.learning-rate", "-1"], ["learning_rate must be positive"]),
        (["--batch-size", "9000"], ["batch_size", "4,500"]),
        (["--batch-size", "6", "--devices", "4"], ["--batch-size 6 does not divide over 4 devices"]),
        (["--full-data"], ["needs all of MNIST", "--data-dir"]),
        (["--blocks", "-1"], ["--blocks must be at least 0"]),
        (["--augment", "saturation"], ["--augment saturation needs colour"]),
        (["--ada-images", "1000"], ["--ada-images", "--augment"]),
        (["--unknown", "1"], ["--unknown"]),
    ],
)
@pytest.mark.grid(fast=1)
def test_bad_input_is_one_line_and_exit_code_2(finished, tmp_path, arguments, words):
    workdir = finished[0] if "--seed" in arguments else tmp_path / "run"
    result = run(workdir, *arguments)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(word in last for word in words), last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_every_preset_makes_networks_that_take_a_step(experiment):
    for name, preset in experiment.PRESETS.items():
        config = dataclasses.replace(preset, batch_size=2)
        step, init = commands.step_and_init(experiment.trainer(config, *experiment.networks(config)))
        state = jax.eval_shape(init)
        batch = {"image": jax.ShapeDtypeStruct((2, 28, 28, 1), "uint8")}
        new, metrics = jax.eval_shape(step, state, batch)
        assert jax.tree.structure(new) == jax.tree.structure(state), name
        dtypes = {leaf.dtype for leaf in jax.tree.leaves((new.generator, new.discriminator, metrics))}
        assert dtypes == {jnp.dtype("float32")}, name


@pytest.mark.parametrize("loss", ["relativistic", "non_saturating"])
@pytest.mark.slow
def test_adaptive_augmentation_follows_the_discriminator(experiment, loss):
    """Up where it tells real from generated, down where it takes all for real; a shift of D alone says nothing."""
    augment = "brightness", "translation", "cutout"
    config = dataclasses.replace(experiment.PRESETS["debug"], loss=loss, augment=augment, ada_images=1000.0)
    step, init = commands.step_and_init(experiment.trainer(config, *experiment.networks(config)))
    images = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), dtype=np.uint8)
    state = init().replace(strength=jnp.asarray(0.5))
    logit = dict(state.discriminator["Dense_1"])

    def strength(bias):
        discriminator = state.discriminator | {"Dense_1": logit | {"bias": logit["bias"] + bias}}
        new, metrics = jax.jit(step)(state.replace(discriminator=discriminator), {"image": images})
        assert float(metrics["strength"]) == float(new.strength)
        assert abs(float(new.strength) - 0.5) == pytest.approx(16 / 1000, rel=1e-2)
        return float(new.strength)

    found = [strength(bias) for bias in (-100.0, 0.0, 100.0)]
    if loss == "relativistic":
        assert len(set(found)) == 1
    else:
        assert found[0] < 0.5 < found[2]


@pytest.mark.slow
def test_gpu_preset_lowers_for_cuda_with_bfloat16_convolutions(experiment):
    config = dataclasses.replace(experiment.PRESETS["gpu"], batch_size=4)
    step, init = commands.step_and_init(experiment.trainer(config, *experiment.networks(config)))
    keyless = jax.eval_shape(init).replace(key=None)
    batch = {"image": jax.ShapeDtypeStruct((4, 28, 28, 1), "uint8")}
    lower = jax.export.export(
        jax.jit(lambda state, batch: step(state.replace(key=jax.random.key(0)), batch)[1]), platforms=["cuda"]
    )
    convolutions = [
        line for line in lower(keyless, batch).mlir_module().splitlines() if "stablehlo.convolution" in line
    ]
    assert len(convolutions) > 20
    assert sum("bf16" in line for line in convolutions) == len(convolutions)


def test_article_networks_have_the_articles_sizes(experiment):
    config = experiment.PRESETS["article"]
    _, init = commands.step_and_init(experiment.trainer(config, *experiment.networks(config)))
    state = jax.eval_shape(init)
    generator, discriminator = (
        sum(leaf.size for leaf in jax.tree.leaves(params)) for params in (state.generator, state.discriminator)
    )
    # dense 100-128-256-512-6272, transposed 4x4 128-128-64, 3x3 64-1; 3x3 1-32-64, dense 50176-128-1; with biases
    assert generator == 12928 + 33024 + 131584 + 3217536 + 262272 + 131136 + 577
    assert discriminator == 320 + 18496 + 6422656 + 129
