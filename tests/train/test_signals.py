"""Signals: the first saves and ends a run, which then continues without a trace; the second ends it at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxai.distributed.mesh import make_mesh
from jaxai.errors import Interrupted
from jaxai.run import checkpoint as checkpoint
from jaxai.train.loop import Every
from jaxai.train.signals import HANDLED, Signals
from tests.helpers import Blobs, lines_of, same_bits, steps_of, train


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
@pytest.mark.grid(fast=1)
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
@pytest.mark.grid(fast=1)
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
@pytest.mark.grid(fast=1)
def test_a_second_signal_ends_what_does_not_listen(signals):
    """While the main thread is in a call into C, where Python's handlers wait."""
    first, second = (getattr(signal, name) for name in signals.split())
    program = """
import hashlib
from jaxai.train.signals import Signals
from jaxai.distributed.mesh import make_mesh
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


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_is_noted_and_handlers_come_back(number):
    before = {one: signal.getsignal(one) for one in HANDLED}
    with Signals(make_mesh(1)) as signals:
        assert signals.stop(save=True) == (0, True)
        os.kill(os.getpid(), number)
        assert signals.received == number
        assert signals.stop() == (number, False)
    assert {one: signal.getsignal(one) for one in HANDLED} == before


def test_a_signal_before_or_within_a_breakable_part_raises():
    with Signals(make_mesh(1)) as signals:
        with pytest.raises(Interrupted, match="SIGTERM"), signals.raised():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"), signals.raised():
            pytest.fail("entered after a signal")


def test_other_threads_leave_the_handlers_alone():
    before = [signal.getsignal(number) for number in HANDLED]
    within = []

    def enter():
        with Signals(make_mesh(1)) as signals:
            within.append([signal.getsignal(number) for number in HANDLED])
            assert signals.stop() == (0, False)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert within == [before]
