"""Unpaired translation as a person runs it, and what its step and its scores mean."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxai import gan
from jaxai.data import load
from jaxai.data.images.domains import DRAWN, TO_GREY, two_domains
from jaxai.ops import to_signed
from jaxai.train import Keys
from tests.experiments import commands
from tests.helpers import hex_losses

SCRIPT = commands.SCRIPTS / "cyclegan_digits.py"


@pytest.fixture(scope="module")
def experiment():
    """The script as a module, without running it."""
    return commands.load(SCRIPT)


@pytest.mark.slow
def test_debug_run_makes_everything_and_goes_on(tmp_path):
    """Two steps, two more, and the same four in one run."""
    halves, whole = tmp_path / "halves", tmp_path / "whole"
    for workdir, steps in ((halves, "2"), (halves, "4"), (whole, "4")):
        result = commands.run(SCRIPT, workdir, "--steps", steps)
        assert result.returncode == 0, result.stderr
        if workdir == halves:
            assert ("going on from step 2" in result.stderr) == (steps == "4")
    assert hex_losses(halves / "metrics.jsonl") == hex_losses(whole / "metrics.jsonl")
    assert (halves / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for name in ("curves.png", "samples/step_000000.png"):
        assert (whole / name).stat().st_size
    with Image.open(whole / "translated.png") as picture:
        assert picture.mode == "RGB"
        assert picture.size == (2 * (10 * 29 - 1), 2 * (6 * 29 - 1))
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["domain"] == "coloured"
    assert summary["samples"] == 250
    assert summary["mnist_fd"] > summary["mnist_fd_floor"]
    assert summary["found"].keys() == {"a_to_b", "b_to_a", "b", "a_to_b_to_a"}
    assert "of the digits are recognised" in result.stdout
    again = commands.run(SCRIPT, whole, "--steps", "4")
    assert "this run is finished" in again.stderr
    assert again.stdout == result.stdout


@pytest.mark.parametrize("domain", ["inverted", "small"])
@pytest.mark.slow
def test_other_domains(experiment, tmp_path, domain):
    commands.start(experiment, tmp_path / "run", "--domain", domain, "--steps", "2")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["domain"] == domain
    assert ("8x8" in summary["other"]) == (domain == "small")
    assert (summary["found"]["b"] > 0.8) == (domain == "small")  # the classifier can't read black on white


@pytest.mark.slow
def test_a_step_is_two_gans_side_by_side(experiment, key):
    """The losses of one step, by hand from the networks."""
    config = dataclasses.replace(experiment.PRESETS["debug"], batch_size=4)
    domains, _ = two_domains(load("mnist", "test", embedded_only=True), config.domain)
    channels = {"to_b": 3, "to_a": 1}
    networks = {name: gan.Translator(count, config.width, config.blocks) for name, count in channels.items()}
    trainer = experiment.trainer(config, networks, domains)
    state = jax.jit(partial(trainer.init, Keys(0)))()
    a, b = domains.a[:4], domains.b[:4]
    after, metrics = jax.jit(trainer.step)(state, {"a": a, "b": b})

    real = {"a": to_signed(a), "b": to_signed(b)}
    fake, again = {}, {}
    for domain, other in (("a", "b"), ("b", "a")):
        there, back = networks[f"to_{other}"], networks[f"to_{domain}"]
        params = state.generator
        fake[other] = there.apply({"params": params[f"to_{other}"]}, real[domain])
        again[domain] = back.apply({"params": params[f"to_{domain}"]}, fake[other])
    discriminator = gan.Discriminator(config.widths, config.hidden)
    losses, penalties, answers = [], [], []
    for domain in ("a", "b"):
        discriminate = partial(gan.apply, discriminator, state.discriminator[domain])
        losses.append(gan.LOSSES["relativistic"].discriminator(*map(discriminate, (real[domain], fake[domain]))).mean())
        penalties.append(gan.r1_r2(discriminate, real[domain], fake[domain], key).mean())
        moved = partial(gan.apply, discriminator, after.discriminator[domain])
        answers.append(gan.LOSSES["relativistic"].generator(*map(moved, (real[domain], fake[domain]))).mean())
    cycle = sum(jnp.abs(again[domain] - real[domain]).mean() for domain in "ab")
    np.testing.assert_allclose(metrics["reconstruction"], config.cycle_weight * cycle, rtol=1e-5)
    np.testing.assert_allclose(metrics["penalty"], sum(penalties), rtol=1e-4)
    expected = sum(losses) / 2 + config.penalty_weight * sum(penalties)
    np.testing.assert_allclose(metrics["discriminator_loss"], expected, rtol=1e-5)
    expected = sum(answers) / 2 + config.cycle_weight * cycle
    np.testing.assert_allclose(metrics["generator_loss"], expected, rtol=1e-4)  # Adam's first steps are signs


def test_a_perfect_translation_has_perfect_scores(experiment):
    """B drawn as A exactly: the classifier finds what it finds in the originals, at the floor's distance."""
    config = experiment.PRESETS["debug"]
    mnist = load("mnist", "test", embedded_only=True)
    domains, _ = two_domains(mnist, config.domain)

    def translate(params, domains, count):
        a, b = domains.a[:count], domains.b[:count]
        return a, DRAWN[config.domain](a), a, b, TO_GREY[config.domain](b), b

    found = experiment.scores(config, translate, None, domains, mnist.images[1::2])
    assert min(found["found"][name] for name in ("a_to_b", "b_to_a", "a_to_b_to_a")) > 0.95
    assert found["found"]["b"] < 0.5
    assert found["mnist_fd"] == found["mnist_fd_floor"]
    assert found["cycle_error"] == {"a": 0, "b": 0}


def test_bad_input_is_one_line_and_exit_code_2(experiment, tmp_path, capsys):
    for arguments, word in [
        (["--domain", "bold"], "--domain"),
        (["--cycle-weight", "-1"], "--cycle-weight must be at least 0"),
        (["--widths", "8"], "--widths must be two positive numbers"),
        (["--ema-half-life", "0"], "--ema-half-life must be positive"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--data-dir", str(tmp_path / "none")], "none"),
    ]:
        assert word in commands.refusal(capsys, partial(commands.start, experiment, tmp_path / "run", *arguments))
    assert not (tmp_path / "run").exists()
