"""Programs of one or several steps: the same steps, known lengths, shapes of batches."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.train.compiled_step import float_leaves, multi_step, scanned, single, skip_nonfinite, steps_a_call
from jaxai.train.loop import Every
from jaxai.train.state import TrainState
from tests.helpers import Blobs, tiny_gan, train


def test_several_steps_in_one_call_are_the_same_steps(tmp_path):
    """However many: the calls end before checkpoints, callbacks and the last step."""
    options = {"every": [Every(3, lambda done, state: {"extra": float(done)})], "checkpoint_every": 5}
    one = train(tmp_path / "one", 11, **options)
    four = train(tmp_path / "four", 11, steps_per_call=4, **options)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "four")
    ]
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys()
        values = [[value for value in line.values() if not isinstance(value, str)] for line in (a, b)]
        np.testing.assert_allclose(*values, rtol=1e-5)  # XLA may round apart in two programs
    assert int(one.state.step) == int(four.state.step) == 11
    assert {path.name for path in (tmp_path / "four" / "checkpoints").iterdir()} == {"10", "11"}


@pytest.mark.parametrize("setup", [{}, {"devices": 4}, {"devices": 4, "shard_parameters": True}])
@pytest.mark.grid(fast=1)
def test_accelerated_steps_are_the_same_steps(tmp_path, setup, accelerated, monkeypatch):
    found = train(tmp_path / "four", 11, steps_per_call=4, **setup)
    monkeypatch.undo()
    plain = train(tmp_path / "one", 11, **setup)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),  # XLA may round apart in two programs
        found.state.generator,
        plain.state.generator,
    )


def test_only_loops_for_accelerators_have_a_known_length():
    def step(state, rows, arrays):
        return state + rows["x"].sum() + arrays, {"loss": rows["x"].mean()}

    arguments = jnp.zeros(()), {"x": jnp.ones((4, 8))}, jnp.ones(()), jnp.int32(4)
    fixed, counted = (str(jax.make_jaxpr(loop)(*arguments)) for loop in (scanned(step), multi_step(step, 4)))
    assert "scan[" in fixed
    assert "while[" not in fixed
    assert "while[" in counted
    found, expected = scanned(step)(*arguments), multi_step(step, 4)(*arguments)
    assert found[0] == expected[0] == 36
    assert found[1]["loss"].tolist() == expected[1]["loss"].tolist() == [1.0] * 4


def test_the_length_of_a_call():
    assert steps_a_call(1.0, 0) == steps_a_call(0.03, 500) == 1
    assert steps_a_call(1e-6, 0) == 32
    assert steps_a_call(1e-6, 500) == 25
    assert steps_a_call(1e-6, 7) == 7
    assert steps_a_call(0.003, 500) == 10
    assert steps_a_call(0.003, 13) == 10  # no divisor is near: the rest is taken step by step


class Uneven(Blobs):
    """Batches of 8 and of 4 in turn."""

    def __next__(self):
        image = super().__next__()["image"]
        return {"image": image[: 8 if self.position % 2 else 4]}


def test_batches_of_other_shapes(tmp_path):
    step, init = tiny_gan()
    result = train(tmp_path, 5, batches=Uneven())
    state, made, taken = jax.jit(init)(), Uneven(), jax.jit(step)
    for _ in range(5):
        state, _ = taken(state, next(made))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),  # XLA may round apart in two programs
        result.state.generator,
        state.generator,
    )


def test_batches_of_one_call_have_one_shape(tmp_path):
    with pytest.raises(ValueError, match="steps_per_call=2, but batches differ in shape: give 1"):
        train(tmp_path, 4, batches=Uneven(), steps_per_call=2)


def test_one_step_is_a_stack_of_one():
    def step(state, rows, arrays):
        return state + rows["x"].sum() + arrays, {"loss": rows["x"].mean()}

    state, metrics = single(step)(jnp.zeros(()), {"x": jnp.ones((1, 8))}, jnp.ones(()), jnp.int32(1))
    assert float(state) == 9
    assert metrics["loss"].tolist() == [1.0]


def test_steps_beyond_the_count_are_not_taken():
    def step(state, rows, arrays):
        return state + rows["x"].sum(), {"sum": rows["x"].sum()}

    stack = {"x": jnp.arange(8.0).reshape(4, 2)}
    for count in range(5):
        state, metrics = multi_step(step, 4)(jnp.zeros(()), stack, None, jnp.int32(count))
        sums = stack["x"].sum(1)[:count]
        assert float(state) == sums.sum()
        assert metrics["sum"].tolist() == [*sums.tolist(), *[0.0] * (4 - count)]


def noisy(state, batch):
    """A step whose new state is what the batch says."""
    return TrainState(state.step + 1, batch["params"], None, (), None), {"loss": batch["loss"]}


def skipped(params: dict, loss: float):
    first = TrainState(jnp.int32(3), {"a": jnp.zeros(4), "b": jnp.zeros(2)}, None, (), None)
    return jax.jit(skip_nonfinite(noisy))(first, {"params": params, "loss": jnp.float32(loss)})


def test_a_finite_step_is_applied():
    params = {"a": jnp.ones(4), "b": jnp.full(2, 2.0)}
    state, metrics = skipped(params, 0.5)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert int(state.step) == 4
    assert {name: float(value) for name, value in metrics.items()} == {"loss": 0.5, "skipped": 0, "worst_leaf": -1}


@pytest.mark.parametrize(
    ("params", "loss", "worst"),
    [
        ({"a": jnp.ones(4), "b": jnp.ones(2)}, np.nan, None),
        ({"a": jnp.ones(4).at[0].set(jnp.inf), "b": jnp.ones(2)}, 0.5, "params/a"),
        ({"a": jnp.ones(4).at[0].set(jnp.nan), "b": jnp.ones(2).at[1].set(-jnp.inf)}, np.inf, "params/b"),
    ],
)
def test_a_step_that_is_not_finite_counts_but_changes_nothing(params, loss, worst):
    state, metrics = skipped(params, loss)
    assert int(state.step) == 4
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.params))
    assert float(metrics["skipped"]) == 1
    names = list(float_leaves(state))
    assert (names[int(metrics["worst_leaf"])] if metrics["worst_leaf"] >= 0 else None) == worst
