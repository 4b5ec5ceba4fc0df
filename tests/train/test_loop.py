"""The promises of the host loop: interrupted or not, on one device or four, the same run."""

import errno
import itertools
import json
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxai.errors import Stopped
from jaxai.run import checkpoint as checkpoint
from jaxai.run.checkpoint import UNFINISHED, read_manifest
from jaxai.train.compiled_step import CompiledStep
from jaxai.train.loop import Every
from jaxai.train.nonfinite import NonFiniteMonitor
from tests.helpers import (
    SETUPS,
    Blobs,
    hex_losses,
    images_run,
    lines_of,
    same_bits,
    saved_steps,
    steps_of,
    train,
)


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.grid(fast=1)
def test_resumed_run_is_bit_equal(tmp_path, setup):
    whole = train(tmp_path / "whole", 12, **setup)
    train(tmp_path / "parts", 6, **setup)
    parts = train(tmp_path / "parts", 12, **setup)
    losses = hex_losses(tmp_path / "parts" / "metrics.jsonl")
    assert losses == hex_losses(tmp_path / "whole" / "metrics.jsonl")
    assert [step for step, *_ in losses] == list(range(1, 13))
    assert same_bits(whole.state, parts.state)


@pytest.mark.parametrize("setup", SETUPS[1:4])
@pytest.mark.grid(fast=1)
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
@pytest.mark.grid(fast=1)
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
@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("setup", [{}, {"devices": 4}, {"steps_per_call": 4}])
@pytest.mark.grid(fast=1)
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


class Ticking(Blobs):
    """Makes a clock that the loop reads go on by a second with each batch."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.seconds = 0.0
        monkeypatch.setattr("jaxai.train.loop.time", SimpleNamespace(perf_counter=lambda: self.seconds))

    def __next__(self):
        self.seconds += 1
        return super().__next__()


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
