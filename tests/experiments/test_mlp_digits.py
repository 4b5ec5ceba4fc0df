"""Backpropagation by hand against jax.grad, and the command as a person runs it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.experiments.commands import SCRIPTS, load, run, step_and_init, train

SCRIPT = SCRIPTS / "mlp_digits.py"
experiment = load(SCRIPT)
backpropagation = jax.jit(experiment.backpropagation)


def draw(seed: int, batch: int, inputs: int, hidden: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Any parameters, images and one-hot labels, float64."""
    rng = np.random.default_rng(seed)
    shapes = {"W1": (inputs, hidden), "b1": (hidden,), "W2": (hidden, 10), "b2": (10,)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return params, rng.normal(size=(batch, inputs)), np.eye(10)[rng.integers(10, size=batch)]


@given(seed=st.integers(0, 2**32 - 1), sizes=st.sampled_from([(1, 1, 1), (4, 3, 5), (2, 8, 3)]))
def test_backpropagation_is_jax_grad(seed, sizes):
    with jax.enable_x64(True):
        params, x, y = jax.tree.map(jnp.asarray, draw(seed, *sizes))
        loss, by_hand = backpropagation(params, x, y)
        # Not compiled whole: with the tests' flags XLA then gives infinite gradients of the largest logit for sizes of
        # 1, probably as it computes the logits more than once and rounds them differently.
        desired, by_jax = jax.value_and_grad(experiment.cross_entropy)(params, x, y)
    np.testing.assert_allclose(loss, desired, rtol=1e-12)
    for name, gradient in by_hand.items():
        assert gradient.dtype == jnp.float64
        np.testing.assert_allclose(gradient, by_jax[name], rtol=1e-12, atol=1e-12, err_msg=name)


def test_unit_at_exactly_zero_passes_nothing_back():
    """Black images and fresh biases make a = 0, where ReLU's slope is a choice: 0, by hand as by jax.grad."""
    params, x, y = draw(0, 4, 3, 5)
    params["b1"] *= 0
    _, by_hand = backpropagation(params, 0 * x, y)
    assert not np.any(by_hand["b1"])
    np.testing.assert_array_equal(jax.jit(jax.grad(experiment.cross_entropy))(params, 0 * x, y)["b1"], by_hand["b1"])


def test_large_logits_overflow_nothing():
    params, x, y = draw(0, 4, 3, 5)
    loss, grads = backpropagation(params | {"W2": 1e30 * params["W2"]}, x, y)
    assert all(np.isfinite(leaf).all() for leaf in [loss, *jax.tree.leaves(grads)])


def test_largest_difference_sees_a_wrong_gradient(monkeypatch):
    right = experiment.backpropagation

    def wrong(*args):
        loss, grads = right(*args)
        return loss, grads | {"b1": 1.01 * grads["b1"]}

    monkeypatch.setattr(experiment, "backpropagation", wrong)
    # of a new function, for which JAX can't remember the program of the right gradient
    difference = jax.jit(lambda *args: experiment.largest_difference(*args))(*draw(0, 4, 3, 5))
    np.testing.assert_allclose(difference, 0.01, rtol=1e-3)


def test_both_networks_start_equal_and_see_the_same_batch():
    config = experiment.PRESETS["debug"]
    trainer = experiment.Both(config, (8, 8, 1))
    (step, init), logits = step_and_init(trainer), jax.jit(trainer.logits)
    state = jax.jit(init)()
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (6, 8, 8, 1), np.uint8), "label": rng.integers(0, 10, 6, np.int32)}
    scores = logits(state, batch["image"])
    np.testing.assert_allclose(scores["by_hand"], scores["adam"], rtol=1e-5, atol=1e-5)  # float32 sums of 64 terms
    new, metrics = jax.jit(step)(state, batch)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(metrics[f"by_hand_{name}"], metrics[f"adam_{name}"], rtol=1e-5)
    gradient = (state["by_hand"]["W1"] - new["by_hand"]["W1"]) / config.learning_rate
    _, desired = backpropagation(state["by_hand"], experiment.flatten(batch["image"]), np.eye(10)[batch["label"]])
    np.testing.assert_allclose(gradient, desired["W1"], atol=1e-6)  # the last bit of parameters of order 1


@pytest.mark.slow
def test_debug_run_goes_on_and_says_when_it_is_finished(tmp_path, caplog, capsys):
    workdir = tmp_path / "run"
    for steps in ("20", "40"):
        result = run(SCRIPT, workdir, "--steps", steps)
        assert result.returncode == 0, result.stderr
    assert "going on from step 20" in result.stderr
    assert "gradients      by hand and by jax.grad differ by" in result.stdout
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 40
    assert summary["largest_gradient_difference"] < 1e-5  # float32 sums of at most 64 terms
    assert min(summary["by_hand_test_accuracy"], summary["adam_test_accuracy"]) > 0.3  # chance is 0.1
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(41))
    assert [line["step"] for line in lines if "adam_test_accuracy" in line] == [0, 10, 20, 30, 40]
    with Image.open(workdir / "curves.png") as picture:
        assert picture.size[0] > 300
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with caplog.at_level("INFO"):
        train(experiment, dataclasses.replace(experiment.PRESETS["debug"], preset="debug", workdir=workdir))
    assert "this run is finished" in caplog.text
    assert capsys.readouterr().out == result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    result = run(SCRIPT, tmp_path / "run", "--batch-size", "2000")
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: batch_size is 2000")
    assert "1,500" in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "--hidden must be at least 1, got 0"),
        ({"eval_every": 0}, "--eval-every must be at least 1"),
        ({"learning_rate": -1.0}, "--learning-rate must be positive, got -1"),
    ],
)
def test_bad_values_are_named_with_the_fix(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(experiment.PRESETS["debug"], **changes)


def test_every_preset_makes_a_step():
    for preset in experiment.PRESETS.values():
        side = 28 if preset.dataset == "mnist" else 8
        step, init = step_and_init(experiment.Both(dataclasses.replace(preset, batch_size=2), (side, side, 1)))
        state = jax.eval_shape(init)
        batch = {
            "image": jax.ShapeDtypeStruct((2, side, side, 1), "uint8"),
            "label": jax.ShapeDtypeStruct((2,), "int32"),
        }
        new, _ = jax.eval_shape(step, state, batch)
        assert jax.tree.structure(new) == jax.tree.structure(state)
