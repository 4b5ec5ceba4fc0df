"""The promises of the host loop: interrupted or not, on one device or four, the same run."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxai.config import Training
from jaxai.data import ImageDataset
from jaxai.data.pipeline import batches
from jaxai.distributed.mesh import make_mesh
from jaxai.errors import Interrupted, Rollback, Stopped
from jaxai.gan.collapse import CollapseConfig
from jaxai.run import checkpoint as checkpoint
from jaxai.run.checkpoint import UNFINISHED, Checkpoints, read_manifest
from jaxai.run.folder import Run
from jaxai.train.compiled_step import CompiledStep, multi_step, scanned, steps_a_call
from jaxai.train.loop import Every, fit
from jaxai.train.nonfinite import NonFiniteMonitor
from jaxai.train.rollback import with_new_keys
from jaxai.train.supervised import cross_entropy, init_state, train_step
from tests.helpers import Blobs, hex_losses, same_bits, tiny_gan

SETUPS = [
    pytest.param({"devices": 1}, id="one"),
    pytest.param({"devices": 4}, id="four"),
    pytest.param({"devices": 4, "shard_parameters": True}, id="four-sharded"),
    pytest.param({"mesh": "data=2,model=2"}, id="two-by-two"),
    pytest.param({"steps_per_call": 4}, id="four-steps-a-call"),
    pytest.param({"devices": 4, "shard_parameters": True, "steps_per_call": 4}, id="four-sharded-steps"),
]


def train(folder: Path, steps: int, *, every=(), checkpoint_every=1000, gan=None, **setup):
    folder.mkdir(exist_ok=True)
    step, init = gan or tiny_gan()
    own = {"every": every, "steps_per_call": setup.pop("steps_per_call", 1)}
    mesh = make_mesh(setup.pop("devices", 1), shape=setup.get("mesh", ""))
    batches = setup.pop("batches", None) or Blobs()
    config = setup.pop("kind", Training)(steps=steps, checkpoint_every=checkpoint_every, **setup)
    return fit(step, init, batches, config, run=Run(folder), mesh=mesh, **own)


@pytest.mark.parametrize("setup", SETUPS)
def test_resumed_run_is_bit_equal(tmp_path, setup):
    whole = train(tmp_path / "whole", 12, **setup)
    train(tmp_path / "parts", 6, **setup)
    parts = train(tmp_path / "parts", 12, **setup)
    losses = hex_losses(tmp_path / "parts" / "metrics.jsonl")
    assert losses == hex_losses(tmp_path / "whole" / "metrics.jsonl")
    assert [step for step, *_ in losses] == list(range(1, 13))
    assert same_bits(whole.state, parts.state)


@pytest.mark.parametrize("setup", SETUPS[1:4])
def test_four_devices_give_the_losses_of_one(tmp_path, setup):
    train(tmp_path / "one", 10)
    result = train(tmp_path / "four", 10, **setup)
    losses = {}
    for name in ("one", "four"):
        lines = hex_losses(tmp_path / name / "metrics.jsonl")
        losses[name] = np.array([[float.fromhex(a), float.fromhex(b)] for _, a, b in lines])
    # float32 sums over a batch in another order; the promise is 1e-5
    np.testing.assert_allclose(losses["one"], losses["four"], rtol=1e-5)
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(result.state.discriminator)}
    assert (PartitionSpec(None, "data") in specs) == setup.get("shard_parameters", False)
    assert (PartitionSpec(None, "model") in specs) == ("mesh" in setup)


@pytest.mark.parametrize(("before", "after"), [(SETUPS[2], SETUPS[0]), (SETUPS[0], SETUPS[3]), (SETUPS[3], SETUPS[1])])
def test_a_run_goes_on_on_other_devices(tmp_path, before, after):
    """On the same global batches, from the same bits."""
    train(tmp_path / "parts", 5, **before.values[0])
    train(tmp_path / "parts", 6, **after.values[0])
    train(tmp_path / "whole", 6)
    losses = [hex_losses(tmp_path / name / "metrics.jsonl") for name in ("parts", "whole")]
    for (step, *one), (other, *two) in zip(*losses, strict=True):
        assert step == other
        values = [[float.fromhex(value) for value in row] for row in (one, two)]
        np.testing.assert_allclose(*values, rtol=1e-5)  # float32 sums in another order


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


@pytest.fixture
def accelerated(monkeypatch):
    """The CPU's devices pass for accelerators."""
    monkeypatch.setattr("jaxai.train.loop.on_accelerator", lambda mesh: True)


def taken_steps(monkeypatch) -> list[int]:
    """How many steps each call takes from now on."""
    taken, call = [], CompiledStep.__call__

    def note(self, state, rows):
        taken.append(len(rows))
        return call(self, state, rows)

    monkeypatch.setattr(CompiledStep, "__call__", note)
    return taken


def test_calls_on_an_accelerator_begin_at_multiples_of_their_length(tmp_path, monkeypatch, accelerated):
    taken = taken_steps(monkeypatch)
    options = {"every": [Every(10, lambda done, state: {})], "steps_per_call": 4}
    train(tmp_path, 23, **options)
    assert taken == [4, 4, 1, 1, 1, 1, 4, 4, 1, 1, 1]
    taken.clear()
    train(tmp_path, 32, **options)
    assert taken == [1, 4, 1, 1, 1, 1]  # 23, 24 to 27, 28 and 29 before the stop at 30, 30 and 31


def test_on_a_cpu_a_call_takes_one_step_unless_more_are_wanted(tmp_path, monkeypatch):
    taken = taken_steps(monkeypatch)
    train(tmp_path / "one", 5, steps_per_call=None)
    assert taken == [1] * 5
    taken.clear()
    train(tmp_path / "four", 7, steps_per_call=4, every=[Every(6, lambda done, state: {})])
    assert taken == [4, 2, 1]


@pytest.mark.parametrize("setup", [{}, {"devices": 4}, {"devices": 4, "shard_parameters": True}])
def test_accelerated_steps_are_the_same_steps(tmp_path, setup, accelerated, monkeypatch):
    found = train(tmp_path / "four", 11, steps_per_call=4, **setup)
    monkeypatch.undo()
    plain = train(tmp_path / "one", 11, **setup)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),  # XLA may round apart in two programs
        found.state.generator,
        plain.state.generator,
    )


class Dying(Blobs):
    """Ends the run in which it makes a certain batch for the first time, as a kill would."""

    def __init__(self, at: set[int]) -> None:
        super().__init__()
        self.at = at

    def __next__(self):
        if self.position in self.at:
            self.at.remove(self.position)
            raise KeyboardInterrupt
        return super().__next__()


@pytest.mark.parametrize("steps_per_call", [4, None])
def test_an_accelerated_run_goes_on_with_the_same_calls(tmp_path, accelerated, monkeypatch, steps_per_call):
    """Bit for bit, from wherever a checkpoint was made, also by time."""
    ticks = itertools.count()
    monkeypatch.setattr("jaxai.train.loop.time", SimpleNamespace(perf_counter=lambda: 0.0075 * next(ticks)))
    options = {"steps_per_call": steps_per_call, "every": [Every(9, lambda done, state: {})]}
    options |= {"checkpoint_seconds": 0.08, "checkpoint_every": 0}
    whole, dying = train(tmp_path / "whole", 40, **options), Dying({11, 19, 27, 33})
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", 40, batches=dying, **options)
    parts = train(tmp_path / "parts", 40, **options)
    assert same_bits(parts.state, whole.state)
    assert hex_losses(tmp_path / "parts" / "metrics.jsonl") == hex_losses(tmp_path / "whole" / "metrics.jsonl")


def test_an_accelerator_chooses_how_many_steps_a_call_takes(tmp_path, accelerated, monkeypatch, caplog):
    """By the duration of the first steps, once for a run, unless there is a number."""
    caplog.set_level("INFO", "jaxai")
    ticks = itertools.count()
    monkeypatch.setattr("jaxai.train.loop.time", SimpleNamespace(perf_counter=lambda: 0.005 * next(ticks)))
    taken, options = taken_steps(monkeypatch), {"every": [Every(12, lambda done, state: {})], "checkpoint_every": 0}
    options |= {"steps_per_call": None}
    train(tmp_path, 18, **options)
    assert taken == [1] * 6 + [6] * 2  # five are measured, a call of six begins at six
    assert "a step takes 5.0 ms: 6 steps a call, compiled in" in caplog.text
    taken.clear()
    caplog.clear()
    train(tmp_path, 30, **options)
    assert taken == [6, 6]
    assert "steps a call" not in caplog.text
    taken.clear()
    train(tmp_path, 36, **options | {"steps_per_call": 2})
    assert taken == [2] * 3
    assert "steps a call" not in caplog.text


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


def images_run():
    """(step, init, batches) of a linear model on 50 images in memory."""
    rng, tx = np.random.default_rng(0), optax.adam(1e-2)
    images, labels = rng.integers(0, 256, (50, 4, 4, 1), np.uint8), rng.integers(0, 3, 50).astype(np.int32)
    data = ImageDataset("numbers", "train", images, labels, 3, "made up", False, "0" * 16)

    def loss_fn(params, batch, key):
        pixels = batch["image"].reshape(len(batch["image"]), -1) / 255.0
        flip = jnp.where(batch["epoch"] % 2 == 0, 1.0, -1.0)[:, None]
        return cross_entropy(flip * pixels @ params["weights"], batch["label"])

    def init():
        return init_state({"weights": jnp.zeros((16, 3))}, tx, jax.random.key(0))

    return partial(train_step, loss_fn=loss_fn, tx=tx), init, partial(batches, data, 8, seed=0)


@pytest.mark.parametrize("setup", [{}, {"devices": 4}, {"steps_per_call": 4}])
def test_data_on_the_device_give_the_same_run(tmp_path, setup, accelerated, monkeypatch):
    """Its checkpoints are those of a run that makes its batches on the host."""
    step, init, made = images_run()
    options = {"gan": (step, init), **setup}
    host = tmp_path / "host"
    with monkeypatch.context() as patch:
        patch.setattr("jaxai.train.feed.RESIDENT_BYTES", 0)
        whole = train(host, 24, batches=made(), **options)
    resident = train(tmp_path / "resident", 24, batches=made(), **options)
    train(tmp_path / "mixed", 8, batches=made(), **options)
    with monkeypatch.context() as patch:
        patch.setattr("jaxai.train.feed.RESIDENT_BYTES", 0)
        train(tmp_path / "mixed", 16, batches=made(), **options)
    mixed = train(tmp_path / "mixed", 24, batches=made(), **options)
    losses = [[line["loss"] for line in lines_of(tmp_path / name)] for name in ("host", "resident", "mixed")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)  # XLA may round apart in two programs
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-5)
    for other in (resident, mixed):
        np.testing.assert_allclose(whole.state.params["weights"], other.state.params["weights"], atol=1e-5)


def test_a_report_names_the_examples_of_data_on_the_device(tmp_path, accelerated):
    step, init, made = images_run()

    def fails(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | {"odd": jnp.where(state.step == 3, jnp.nan, 1.0)}

    with pytest.raises(FloatingPointError):
        train(tmp_path, 9, gan=(fails, init), batches=made(), steps_per_call=4)
    expected = made()
    for _ in range(2):
        next(expected)
    assert json.loads((tmp_path / "nonfinite.json").read_text())["ids"] == next(expected)["id"].tolist()


def test_the_next_call_is_on_its_way_before_the_last_ones_metrics_are_read(tmp_path, monkeypatch):
    """So its batch is made and sent while the device works; a checkpoint knows the batches that were used, no more."""
    events, take, rows = [], CompiledStep.__call__, NonFiniteMonitor.rows

    def noted_take(self, state, batch):
        events.append("call")
        return take(self, state, batch)

    def noted_rows(self, taken, state):
        events.append(f"read {taken.done + 1}")
        return rows(self, taken, state)

    monkeypatch.setattr(CompiledStep, "__call__", noted_take)
    monkeypatch.setattr(NonFiniteMonitor, "rows", noted_rows)
    train(tmp_path, 5, checkpoint_every=3)
    reads = ["read 1", "call", "read 2", "read 3"]
    assert events == ["call", "call", *reads, "call", "call", "read 4", "read 5"]
    for step in (3, 5):
        assert read_manifest(tmp_path / "checkpoints" / str(step))["host"]["batches"] == {"position": step}


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


class Ticking(Blobs):
    """Makes a clock that the loop reads go on by a second with each batch."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.seconds = 0.0
        monkeypatch.setattr("jaxai.train.loop.time", SimpleNamespace(perf_counter=lambda: self.seconds))

    def __next__(self):
        self.seconds += 1
        return super().__next__()


def saved_steps(monkeypatch) -> list[int]:
    """Of which steps checkpoints are written from now on."""
    saved, write = [], Checkpoints._write

    def note(self, step, *arguments):
        saved.append(step)
        write(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "_write", note)
    return saved


def test_there_is_a_checkpoint_every_so_many_seconds(tmp_path, monkeypatch):
    """At the end of the call in which they have passed, and they begin again after every checkpoint."""
    saved = saved_steps(monkeypatch)
    options = {"checkpoint_seconds": 4.0, "checkpoint_every": 0}
    whole = train(tmp_path / "run", 14, batches=Ticking(monkeypatch), **options)
    assert saved == [4, 8, 12, 14]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"12", "14"}
    saved.clear()
    train(tmp_path / "both", 14, batches=Ticking(monkeypatch), **options | {"checkpoint_every": 6})
    assert saved == [4, 6, 10, 12, 14]
    saved.clear()
    options |= {"steps_per_call": 3, "every": [Every(7, lambda done, state: {})]}
    multi_step = train(tmp_path / "several", 14, batches=Ticking(monkeypatch), **options)
    assert saved == [6, 10, 14]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),  # XLA may round apart in two programs
        whole.state.generator,
        multi_step.state.generator,
    )
    saved.clear()
    train(tmp_path / "none", 14, batches=Ticking(monkeypatch), checkpoint_seconds=0.0, checkpoint_every=0)
    assert saved == [14]


def test_the_best_evaluations_are_saved(tmp_path):
    def measure(done, state):
        return {"extra": abs(done - 4.0)}

    options = {"checkpoint_every": 0, "keep": 1, "keep_lowest": ("extra",)}
    train(tmp_path, 11, every=[Every(2, measure)], **options)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "10", "11"}


def test_a_collapse_leads_back_to_the_evaluation_before(tmp_path, monkeypatch):
    """However many checkpoints there were since."""
    saved = saved_steps(monkeypatch)
    options = {"checkpoint_every": 1, "kind": CollapseConfig, "on_collapse": "rollback"}
    train(tmp_path, 10, every=[Every(4, Trouble(at=8, well=4, times=1))], **options)
    (told,) = json.loads((tmp_path / "rollbacks.json").read_text())["rollbacks"]
    assert told["to"] == 4
    assert saved == [*range(1, 8), *range(5, 11)]


def test_a_checkpoint_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    whole, write = train(tmp_path / "whole", 12), checkpoint.write_manifest

    def full(folder, host):
        if folder.name.startswith("6"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, host)

    monkeypatch.setattr("jaxai.run.checkpoint.write_manifest", full)
    with pytest.raises(Stopped, match=r"step 6 can't be written .*\(No space left on device\), that of step 3 is"):
        train(tmp_path / "parts", 12, checkpoint_every=3)
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["3"]
    monkeypatch.undo()
    parts = train(tmp_path / "parts", 12, checkpoint_every=3)
    assert same_bits(parts.state, whole.state)


def test_steps_are_taken_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    fetched, write = threading.Event(), checkpoint.write_manifest

    class Noting(Blobs):
        def __next__(self):
            if self.position == 7:
                fetched.set()
            return super().__next__()

    def late(folder, host):
        assert fetched.wait(60), "no step was taken"
        write(folder, host)

    monkeypatch.setattr("jaxai.run.checkpoint.write_manifest", late)
    parts = train(tmp_path / "run", 8, batches=Noting(), checkpoint_every=4)
    assert same_bits(parts.state, train(tmp_path / "whole", 8).state)


def test_batches_of_one_call_have_one_shape(tmp_path):
    with pytest.raises(ValueError, match="steps_per_call=2, but batches differ in shape: give 1"):
        train(tmp_path, 4, batches=Uneven(), steps_per_call=2)


def test_run_that_breaks_off_between_checkpoints_goes_on_without_a_trace(tmp_path):
    def breaks_off(done, state):
        if done == 8:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", 12, every=[Every(1, breaks_off)], checkpoint_every=5)
    broken = train(tmp_path / "broken", 12, checkpoint_every=5)
    whole = train(tmp_path / "whole", 12)
    assert hex_losses(tmp_path / "broken" / "metrics.jsonl") == hex_losses(tmp_path / "whole" / "metrics.jsonl")
    assert same_bits(broken.state, whole.state)


def test_a_run_without_a_checkpoint_writes_no_step_twice(tmp_path):
    def breaks_off(done, state):
        if done == 3:
            raise KeyboardInterrupt
        return {"extra": float(done)}

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", 5, every=[Every(1, breaks_off)])
    train(tmp_path / "run", 5, every=[Every(1, lambda done, state: {"extra": float(done)})])
    assert steps_of(tmp_path / "run") == list(range(6))


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Trouble:
    """Sets training back at a step, until it was called there so many times."""

    def __init__(self, at: int, well: int, times: int) -> None:
        self.at, self.well, self.left = at, well, times

    def __call__(self, done, state):
        if done == self.at and self.left:
            self.left -= 1
            raise Rollback(f"step {done}: trouble", self.well)
        return {}


@pytest.mark.parametrize("setup", SETUPS)
def test_a_setback_goes_on_from_where_all_was_well_with_other_noise(tmp_path, setup):
    options = {"checkpoint_every": 3, **setup}
    trouble = Trouble(at=9, well=5, times=2)
    back = train(tmp_path / "back", 12, every=[Every(3, trouble)], **options)
    whole = train(tmp_path / "whole", 12, **options)
    losses = [hex_losses(tmp_path / name / "metrics.jsonl") for name in ("back", "whole")]
    assert [step for step, *_ in losses[0]] == list(range(1, 13))
    assert losses[0][:3] == losses[1][:3]
    assert all(a != b for a, b in zip(losses[0][3:], losses[1][3:], strict=True))
    told = json.loads((tmp_path / "back" / "rollbacks.json").read_text())["rollbacks"]
    assert told == [{"reason": "step 9: trouble", "to": 3}] * 2
    assert not same_bits(back.state.generator, whole.state.generator)


def test_a_run_that_was_set_back_and_broke_off_goes_on_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", 12, every=[Every(3, Trouble(6, 3, 1))], checkpoint_every=3)
    for stop in (4, 7):  # right after the rollback, and one checkpoint later
        folder, trouble = tmp_path / str(stop), Trouble(6, 3, 1)

        def stops(done, state, stop=stop, trouble=trouble):
            if done == stop and not trouble.left:
                raise KeyboardInterrupt
            return trouble(done, state)

        with pytest.raises(KeyboardInterrupt):
            train(folder, 12, every=[Every(1, stops)], checkpoint_every=3)
        parts = train(folder, 12, checkpoint_every=3)
        assert same_bits(parts.state, whole.state)
        assert hex_losses(folder / "metrics.jsonl") == hex_losses(tmp_path / "whole" / "metrics.jsonl")


def test_several_gans_get_noise_of_their_own_again():
    _, init = tiny_gan()
    state = jax.vmap(lambda key: jax.jit(init)().replace(key=key))(jax.random.split(jax.random.key(0), 3))
    keys = [jax.random.key_data(with_new_keys(state, number).key).tolist() for number in (0, 1, 2)]
    assert len({tuple(key) for row in keys for key in row}) == 9
    one = with_new_keys(state.replace(key=state.key[1]), 2)
    assert jax.random.key_data(one.key).tolist() == keys[2][1]


def test_what_a_kill_leaves_of_a_dropped_checkpoint_is_cleaned_up(tmp_path):
    train(tmp_path / "run", 9, checkpoint_every=3)
    folder = tmp_path / "run" / "checkpoints"
    half = (folder / "9").rename(folder / f"9{UNFINISHED}")
    (half / "state" / "_METADATA").unlink()
    train(tmp_path / "run", 9, checkpoint_every=3)
    assert sorted(path.name for path in folder.iterdir()) == ["6", "9"]


def test_setbacks_without_a_checkpoint_start_over_and_the_fourth_stops(tmp_path):
    with pytest.raises(Stopped, match="step 4: trouble; 3 times before"):
        train(tmp_path / "run", 12, every=[Every(2, Trouble(at=4, well=2, times=9))], checkpoint_every=6)
    assert len(json.loads((tmp_path / "run" / "rollbacks.json").read_text())["rollbacks"]) == 3
    assert steps_of(tmp_path / "run")[-1] <= 4


def test_callbacks_run_before_the_first_step_and_on_time_and_their_metrics_are_logged(tmp_path):
    seen = []

    def note(done, state):
        seen.append((done, int(state.step)))
        return {"extra": float(done)}

    train(tmp_path / "run", 5, every=[Every(2, note)])
    assert seen == [(0, 0), (2, 2), (4, 4)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line.get("extra") for line in lines] == [0.0, None, 2.0, None, 4.0, None]


def test_finished_run_is_only_restored(tmp_path):
    first = train(tmp_path / "run", 4)
    again = train(tmp_path / "run", 4)
    assert again.train_seconds == first.train_seconds > 0
    assert same_bits(first.state, again.state)


class Poisoned(Blobs):
    """The fourth batch holds a NaN."""

    def __next__(self):
        batch = super().__next__()
        if self.position == 4:
            batch["image"][2, 1, 1, 0] = np.nan
        return batch


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_loss_that_is_not_finite_stops_the_run_with_a_report(tmp_path, steps_per_call):
    with pytest.raises(FloatingPointError, match=r"at step 4, see .*nonfinite.json.*lower the learning rate"):
        train(tmp_path, 9, checkpoint_every=3, batches=Poisoned(), steps_per_call=steps_per_call)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["step"] == 4
    assert "discriminator_loss" in report["not_finite"]
    assert any(name.startswith("discriminator/") for name in report["leaves"])
    assert [step for step, *_ in hex_losses(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == 3


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Once(Poisoned):
    """Poisoned the first time only."""

    def __next__(self):
        batch = super().__next__()
        if np.isnan(batch["image"]).any():
            self.__class__ = Blobs
        return batch


@pytest.mark.parametrize("steps_per_call", [1, 5])
def test_a_step_that_is_not_finite_is_skipped_on_request(tmp_path, steps_per_call, caplog):
    config = {"on_nonfinite": "skip", "checkpoint_every": 3, "steps_per_call": steps_per_call}
    found = train(tmp_path, 9, batches=Poisoned(), **config).state
    step, init = tiny_gan()
    state, batches, taken = jax.jit(init)(), Poisoned(), jax.jit(step)
    for number in range(1, 10):
        new, _ = taken(state, next(batches))
        state = state.replace(step=new.step) if number == 4 else new
    assert int(found.step) == 9
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found.generator, state.generator)
    lines = lines_of(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert "discriminator_loss" not in lines[3]
    assert all("worst_leaf" not in line for line in lines)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (report["step"], report["batch"]) == (4, 3)
    assert report["worst_leaf"].split("/")[0] in {"generator", "discriminator", "ema_params", "discriminator_opt"}
    assert "at step 4, see" in caplog.text
    assert "the step is skipped" in caplog.text


def odd_run():
    """(step, init, batches) of a linear model of ten weights: no size of it is a power of two."""
    tx = optax.sgd(1e-3)

    def loss_fn(params, batch, key):
        return ((batch["image"].reshape(8, -1)[:, :10] @ params["weights"]) ** 2).mean(), {}

    def init():
        return init_state({"weights": jnp.ones(10)}, tx, jax.random.key(0))

    return partial(train_step, loss_fn=loss_fn, tx=tx), init


def test_nothing_is_skipped_without_need(tmp_path):
    train(tmp_path, 5, gan=odd_run(), on_nonfinite="skip")
    assert [line["skipped"] for line in lines_of(tmp_path)] == [0.0] * 5


def test_a_metric_alone_that_is_not_finite_names_no_leaf(tmp_path):
    step, init = odd_run()

    def noted(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | {"odd": jnp.where(state.step == 3, jnp.nan, 1.0)}

    train(tmp_path, 5, gan=(noted, init), on_nonfinite="skip")
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (report["not_finite"], report["worst_leaf"]) == (["odd"], None)


class Rotten(Blobs):
    """Every batch from the fourth on holds a NaN."""

    def __next__(self):
        batch = super().__next__()
        if self.position >= 4:
            batch["image"][0] = np.nan
        return batch


def test_ten_skipped_steps_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step 13, see .*: 10 steps in a row are skipped"):
        train(tmp_path, 30, batches=Rotten(), on_nonfinite="skip")


def test_a_step_that_is_not_finite_sets_back_on_request(tmp_path):
    options = {"on_nonfinite": "rollback", "checkpoint_every": 3}
    train(tmp_path / "once", 9, batches=Once(), **options)
    (told,) = json.loads((tmp_path / "once" / "rollbacks.json").read_text())["rollbacks"]
    assert (told["to"], "is nan at step 4" in told["reason"]) == (3, True)
    with pytest.raises(Stopped, match=r"at step 4, see .*; 3 times before it went back"):
        train(tmp_path / "rotten", 9, batches=Rotten(), **options)


def test_a_report_names_the_examples(tmp_path):
    class Named(Poisoned):
        def __next__(self):
            batch = super().__next__()
            return batch | {"id": np.arange(8) + 8 * self.position}

    with pytest.raises(FloatingPointError):
        train(tmp_path, 9, batches=Named())
    assert json.loads((tmp_path / "nonfinite.json").read_text())["ids"] == list(range(32, 40))


class Signalling(Blobs):
    """Sends this process a signal while it makes a batch."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__()
        self.number, self.at = number, at

    def __next__(self):
        batch = super().__next__()
        if self.position == self.at:
            os.kill(os.getpid(), self.number)
        return batch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_signal_saves_and_ends_the_run(tmp_path, number, steps_per_call):
    def look(done, state):
        return {"extra": float(state.step)}

    options = {"every": [Every(3, look)], "checkpoint_every": 100, "steps_per_call": steps_per_call}
    before = signal.getsignal(number)
    whole = train(tmp_path / "whole", 14, **options)
    for at in (6, 8):  # at step 6 a look is due
        with pytest.raises(Interrupted, match=number.name) as caught:
            train(tmp_path / str(at), 14, batches=Signalling(number, at), **options)
        assert caught.value.number == number
        assert signal.getsignal(number) is before
        (saved,) = (tmp_path / str(at) / "checkpoints").iterdir()
        assert at <= int(saved.name) < at + steps_per_call
        parts = train(tmp_path / str(at), 14, **options)
        assert same_bits(parts.state, whole.state)
        assert lines_of(tmp_path / str(at)) == lines_of(tmp_path / "whole")


@pytest.mark.parametrize("at", [3, 6, 14])
def test_a_signal_breaks_off_what_is_called_between_steps(tmp_path, at):
    """It is called again when the run goes on, also after the last step."""
    calls = []

    def look(done, state):
        calls.append(done)
        if done == at and calls.count(at) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return {"extra": float(state.step)}

    options = {"every": [Every(1, look)], "checkpoint_every": 4}
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", 14, **options)
    train(tmp_path / "parts", 14, **options)
    assert calls == [*range(at + 1), *range(at, 15)]
    train(tmp_path / "whole", 14, **options)
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")


def test_a_signal_a_kill_and_another_leave_every_line_once(tmp_path):
    def dies(done, state):
        if done == 10:
            raise KeyboardInterrupt
        return {"extra": float(done)}

    def look(done, state):
        return {"extra": float(done)}

    for at in (7, 6):  # at step 6 a look is due
        folder = tmp_path / str(at)
        with pytest.raises(Interrupted):
            train(folder, 12, batches=Signalling(signal.SIGTERM, at), every=[Every(2, look)])
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                train(folder, 12, every=[Every(2, dies)])
        train(folder, 12, every=[Every(2, look)])
        assert steps_of(folder) == list(range(13))
        assert [line["step"] for line in lines_of(folder) if "extra" in line] == [0, 2, 4, 6, 8, 10, 12]


def test_a_signal_at_the_end_is_not_lost(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, 5, batches=Signalling(signal.SIGTERM, 5))
    assert train(tmp_path, 5).state.step == 5


def test_a_signal_during_the_last_write_waits_for_it(tmp_path, monkeypatch):
    write = checkpoint.write_manifest

    def late(folder, host):
        os.kill(os.getpid(), signal.SIGTERM)
        write(folder, host)

    monkeypatch.setattr("jaxai.run.checkpoint.write_manifest", late)
    with pytest.raises(Interrupted):
        train(tmp_path, 5)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]


def test_a_look_that_was_broken_off_counts_for_the_best(tmp_path):
    calls = []

    def look(done, state):
        calls.append(done)
        if calls.count(4) == 1 and done == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return {"extra": {2: 3.0, 4: 1.0}.get(done, 2.0)}

    options = {"every": [Every(2, look)], "checkpoint_every": 2, "keep": 1, "keep_lowest": ("extra",)}
    with pytest.raises(Interrupted):
        train(tmp_path, 8, **options)
    train(tmp_path, 8, **options)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "8"}


@pytest.mark.parametrize("signals", ["SIGTERM SIGTERM", "SIGINT SIGTERM"])
def test_a_second_signal_ends_what_does_not_listen(signals):
    """While the main thread is in a call into C, where Python's handlers wait."""
    first, second = (getattr(signal, name) for name in signals.split())
    program = """
import hashlib
from jaxai.train.signals import Signals
from jaxai.train.sharding import make_mesh
from jaxai.train.supervised import init_state, train_step
with Signals(make_mesh(1)):
    print("listening", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout.readline() == "listening\n"
        job.send_signal(first)
        time.sleep(0.2)
        job.send_signal(second)
        assert job.wait(20) == 128 + second


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    def another(done, state):
        """And does not take for a leftover what the first one is writing."""
        (writing := tmp_path / "run" / "checkpoints" / f"9{UNFINISHED}").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="is in use, another process trains in it: wait"):
            train(tmp_path / "run", 4)
        assert writing.exists()
        return {}

    train(tmp_path / "run", 2, every=[Every(1, another)])
    train(tmp_path / "run", 4)


def test_a_damaged_checkpoint_costs_an_interval_and_not_a_bit(tmp_path, caplog):
    whole = train(tmp_path / "whole", 12, checkpoint_every=4)
    train(tmp_path / "parts", 8, checkpoint_every=4)
    (tmp_path / "parts" / "checkpoints" / "8" / "manifest.json").unlink()
    parts = train(tmp_path / "parts", 12, checkpoint_every=4)
    assert "manifest.json can't be read" in caplog.text
    assert same_bits(parts.state, whole.state)
    assert hex_losses(tmp_path / "parts" / "metrics.jsonl") == hex_losses(tmp_path / "whole" / "metrics.jsonl")


def test_times_add_up_over_the_starts_of_a_run(tmp_path):
    first = train(tmp_path / "run", 4)
    second = train(tmp_path / "run", 8)
    assert second.train_seconds > first.train_seconds > 0
    assert second.compile_seconds > first.compile_seconds > 0


def test_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(ValueError, match="--batch-size 6 does not divide over 4 devices"):
        make_mesh(4, batch_size=6)


def test_tensorboard_events_are_written(tmp_path):
    train(tmp_path / "run", 2, tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
