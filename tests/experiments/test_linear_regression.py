"""Gradients by hand against jax.grad, least squares against NumPy, and the command as a person runs it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxai import cli
from tests.experiments.commands import SCRIPTS, load, run, step_and_init, train

SCRIPT = SCRIPTS / "linear_regression.py"
experiment = load(SCRIPT)
slopes_by_jax = jax.jit(jax.grad(experiment.mean_squared_error))
slopes_by_hand, least_squares = jax.jit(experiment.gradient_by_hand), jax.jit(experiment.least_squares)


def draw_points(seed: int, count: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Any line and any points, float64."""
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(), "b": rng.normal()}, rng.normal(size=count), rng.normal(size=count)


@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([1, 2, 7]))
def test_gradients_by_hand_are_those_of_jax(seed, count):
    line, x, y = draw_points(seed, count)
    with jax.enable_x64(True):
        by_hand, by_jax = slopes_by_hand(line, x, y), slopes_by_jax(line, x, y)
    for name, gradient in by_hand.items():
        assert gradient.dtype == jnp.float64
        np.testing.assert_allclose(gradient, by_jax[name], rtol=1e-12, atol=1e-12)  # terms of order 1 may cancel


@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([5, 30]))
def test_least_squares_is_numpys_and_has_no_gradient(seed, count):
    _, x, y = draw_points(seed, count)
    with jax.enable_x64(True):
        line = least_squares(x, y)
        gradient = slopes_by_jax(line, x, y)
    desired, *_ = np.linalg.lstsq(np.stack([x, np.ones(count)], 1), y)
    np.testing.assert_allclose([line["w"], line["b"]], desired, rtol=1e-9, atol=1e-9)  # x may lie close together
    np.testing.assert_allclose([gradient["w"], gradient["b"]], 0, atol=1e-9)


def descend(config, x, y, steps):
    """The state after some steps, and the metrics of each, [steps]."""
    step, init = step_and_init(experiment.Descents(config.learning_rate))
    run = jax.jit(lambda x, y: jax.lax.scan(lambda state, _: step(state, {"x": x, "y": y}), init(), length=steps))
    return run(x, y)


@pytest.mark.parametrize("name", ["default", "article"])
def test_claim(name):
    config = experiment.PRESETS[name]
    x, y = jax.jit(lambda: experiment.make_points(config))()
    end = least_squares(x, y)
    state, metrics = descend(config, x, y, config.steps)
    for line in state.values():
        assert abs(line["w"] - end["w"]) < experiment.TOLERANCE
        assert abs(line["b"] - end["b"]) < experiment.TOLERANCE
    # float32 keeps 6e-8 of each of the 100 terms; the sums are in other orders
    assert metrics["gradient_difference"].max() < 1e-6


def test_measure_sees_a_wrong_gradient(monkeypatch):
    right = experiment.gradient_by_hand
    monkeypatch.setattr(experiment, "gradient_by_hand", lambda *args: {**right(*args), "b": 1.01 * right(*args)["b"]})
    x, y = experiment.make_points(experiment.PRESETS["debug"])
    # of a new function, for which JAX can't remember the program of the right gradient
    measured = jax.jit(lambda *args: experiment.measure(*args))({"w": 0.0, "b": 0.0}, x, y)
    assert measured["gradient_difference"] > 1e-3


def test_descents_take_the_steps_of_a_plain_loop():
    with jax.enable_x64(True):
        x, y = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 3.0, 2.0])
        path = descend(experiment.PRESETS["default"], x, y, 5)[1]
    w = b = 0.0
    for step in range(5):
        np.testing.assert_allclose([path["w"][step], path["b"][step]], [w, b], rtol=1e-12)
        error = np.asarray(y) - (w * np.asarray(x) + b)
        w, b = w + 0.1 * 2 * np.mean(error * np.asarray(x)), b + 0.1 * 2 * np.mean(error)


def test_debug_run_says_when_it_is_finished_and_goes_on(tmp_path, caplog, capsys):
    workdir = tmp_path / "run"
    first = run(SCRIPT, workdir)
    assert first.returncode == 0, first.stderr
    for word in ("true line", "by hand", "jax.grad", "least squares", "descent.png", "not yet within"):
        assert word in first.stdout
    with Image.open(workdir / "descent.png") as picture:
        assert picture.size[0] > 1000
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    config = dataclasses.replace(experiment.PRESETS["debug"], preset="debug", workdir=workdir)
    with caplog.at_level("INFO"):
        train(experiment, config)
    assert "this run is finished" in caplog.text
    assert capsys.readouterr().out == first.stdout
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    train(experiment, dataclasses.replace(config, steps=300))
    assert (workdir / "metrics.jsonl").read_text().splitlines()[:20] == lines
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 300
    assert summary["distance_to_closed_form"] < experiment.TOLERANCE
    assert "not yet within" not in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    for arguments, word in [(["--learning-rate", "0"], "--learning-rate"), (["--slope", "3"], "--slope")]:
        result = run(SCRIPT, tmp_path / "run", *arguments)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert word in line
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--points", "1"], "--points must be at least 2, got 1"),
        (["--noise", "-1"], "--noise must be at least 0"),
        (["--learning-rate", "nan"], "--learning-rate must be positive, got nan"),
        (["--preset", "articel"], "did you mean article"),
    ],
)
def test_bad_values_are_named_with_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        cli.parse(experiment.PRESETS, None, arguments)


def test_rate_that_is_too_large_stops_at_its_step(tmp_path):
    config = cli.parse(experiment.PRESETS, None, ["--learning-rate", "9", "--workdir", str(tmp_path / "run")])
    with pytest.raises(FloatingPointError, match=r"is (inf|nan) at step \d+, see .*: lower the learning rate"):
        train(experiment, config)
    assert not (tmp_path / "run" / "summary.json").exists()
