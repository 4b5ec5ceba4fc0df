"""The training loop on the host, shared by all experiments: it can be interrupted and resumed at any step."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxai.config import Training
from jaxai.distributed.mesh import on_accelerator
from jaxai.distributed.processes import local, local_mesh, watchdog
from jaxai.distributed.sharding import state_sharding
from jaxai.errors import Interrupted, Rollback
from jaxai.run.checkpoint import Checkpoints
from jaxai.run.folder import Run, check_same, locked
from jaxai.run.log import MetricsLog, Progress
from jaxai.train.compiled_step import CompiledStep, Step, skip_nonfinite, steps_a_call
from jaxai.train.feed import Batches, feed_of
from jaxai.train.nonfinite import CallResult, NonFiniteMonitor
from jaxai.train.rollback import read_rollbacks, roll_back, with_new_keys
from jaxai.train.signals import Signals
from jaxai.typing import PyTree

logger = logging.getLogger(__name__)

MEASURED = 5  # single steps timed to choose the steps per call; the first is a warm-up


Write = Callable[[int, Mapping[str, float]], None]
"""(step, metrics) -> None: log the metrics of a step."""


@dataclasses.dataclass(frozen=True)
class Every:
    """Call ``function(done, state)`` before step 1 and after every ``steps`` steps; log the metrics it returns.

    A call interrupted by a signal is repeated with the same state when the run resumes.
    """

    steps: int
    function: Callable[[int, Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Result:
    """The state after the last ``step``, its mesh, and timings in seconds, accumulated over all starts of the run.

    ``train_seconds`` is everything but compilation; it includes ``evaluation_seconds``, spent in `Every`'s functions.
    """

    state: Any
    step: int
    mesh: Mesh
    compile_seconds: float
    train_seconds: float
    evaluation_seconds: float


def fit(
    step: Step,
    init: Callable[[], PyTree],
    batches: Batches,
    config: Training,
    *,
    run: Run,
    mesh: Mesh,
    every: Sequence[Every] = (),
    show: Sequence[str] = ("loss",),
    steps_per_call: int | None = None,
) -> Result:
    """Train until ``config.steps``, from the newest good checkpoint of the run or from ``init()``.

    The step is jitted with the state donated and sharded over the devices. ``steps_per_call`` steps run as one device
    program, which pays where steps are short, but not for `jax.lax` convolutions on CPU, which are slow inside a loop;
    ValueError if their batches differ in shape. On a CPU the default is 1, and a call that an evaluation or a
    checkpoint cuts short gives bitwise the same result. On accelerators, where each loop length is a program with its
    own rounding, calls begin at multiples of ``steps_per_call`` and steps left over run one by one; the default is
    chosen from timings of the first steps (`steps_a_call`) and stored in the checkpoints. Data sets below 1 GB are
    kept on the accelerator, and the host sends row indices (`feed_of`).

    Checkpoints are written in the background: every ``config.checkpoint_seconds``, at multiples of
    ``config.checkpoint_every``, with ``config.save_evaluations`` at those of ``every``, and after the last step.
    `NonFiniteMonitor` handles non-finite metrics; such a step is never saved. A `Rollback` deletes the checkpoints
    after its last good step and resumes from the newest remaining one, or from the start, on the same batches with a
    new key; ``rollbacks.json`` lists them, and the fourth raises Stopped. SIGTERM and SIGINT save, then raise
    Interrupted. Raises ValueError if another process trains in the run's folder, Stopped if a checkpoint can't be
    written.
    """
    with jax.set_mesh(mesh), locked(run), Signals(mesh) as signals:
        with closing(checkpoints_of(run, config, every)) as checkpoints:
            loop = Loop(step, init, batches, config, run, mesh, every, show, steps_per_call, checkpoints, signals)
            result = loop.run_until_done()
        if signals.received:  # arrived after the last step
            raise Interrupted(signals.received)
        return result


def checkpoints_of(run: Run, config: Training, every: Sequence[Every]) -> Checkpoints:
    """The checkpoints of a run, with the retention policy of its config."""
    kept = {"lowest": config.keep_lowest, "highest": config.keep_highest}
    evaluations = [entry.steps for entry in every] if config.save_evaluations else []
    return Checkpoints(run.checkpoints, config.keep, evaluations=evaluations, **kept)


@dataclasses.dataclass
class Loop:
    """The arguments of `fit` and its state on the host."""

    step: Step
    init: Callable[[], PyTree]
    batches: Batches
    config: Training
    run: Run
    mesh: Mesh
    every: Sequence[Every]
    show: Sequence[str]
    steps_per_call: int | None
    checkpoints: Checkpoints
    signals: Signals

    def __post_init__(self) -> None:
        self.shapes = jax.eval_shape(self.init)
        self.shardings = state_sharding(self.shapes, self.mesh, shard_parameters=self.config.shard_parameters)
        self.times = {"compile_seconds": 0.0, "train_seconds": 0.0, "evaluation_seconds": 0.0}
        self.clock, self.since_save = Clock(), Clock()
        self.accelerator = on_accelerator(self.mesh)
        self.length = self.steps_per_call or (None if self.accelerator else 1)
        self.durations: list[float] = []
        self.feed = feed_of(self.batches, self.mesh, resident=self.accelerator)
        self.first = self.batches.get_state()
        self.rollbacks = read_rollbacks(self.run)
        self.take: CompiledStep | None = None

    def run_until_done(self) -> Result:
        """Train to the last step, starting over from a checkpoint after each rollback."""
        while True:
            state, start, pending = self.begin()
            if start >= self.config.steps and pending is None:
                return Result(local(state, self.mesh), start, self.mesh, **self.times)
            take = self.compiled(state)
            again = pending is not None or not start  # the log line of step ``start`` is still to be written
            log = MetricsLog(self.run.metrics, start - again, tensorboard=self.config.tensorboard)
            bar = Progress(self.run.shared.name, start, self.config.steps, self.show)
            with closing(log), closing(bar):

                def write(step: int, values: Mapping[str, float], log: MetricsLog = log, bar: Progress = bar) -> None:
                    log.write(step, values)
                    bar.update(step, values)

                try:
                    self.evaluate_first(start, pending, state, write)
                    state = self.advance(take, state, start, write, log, bar)
                    return Result(local(state, self.mesh), self.config.steps, self.mesh, **self.times)
                except Rollback as rollback:
                    self.times["train_seconds"] += self.clock.lap()
                    roll_back(self.run, self.checkpoints, rollback, self.rollbacks)

    def begin(self) -> tuple[PyTree, int, dict[str, float] | None]:
        """The state to resume from, its step, and that step's metrics if its evaluation was interrupted, else None."""
        start, pending = self.checkpoints.newest_good() or 0, None
        if start:
            state, host = self.checkpoints.restore(start, self.shapes, self.shardings)
            check_same(self.run.identity, host["run"], self.run.checkpoints / str(start))
            self.batches.set_state(host["batches"])
            pending = host["pending"]
            self.length = self.length or host.get("steps_per_call")
            if self.take is None:  # not after a rollback: the times of this process go on
                self.times.update({name: host[name] for name in self.times})
            logger.info("going on from step %d of %s", start, self.run.folder)
        else:
            state = jax.jit(self.init, out_shardings=self.shardings)()
            self.batches.set_state(self.first)
        if self.rollbacks and self.rollbacks[-1]["to"] == start:
            other = partial(with_new_keys, number=len(self.rollbacks))
            state = jax.jit(other, out_shardings=self.shardings)(state)
        return state, start, pending

    def compiled(self, state: PyTree) -> CompiledStep:
        """The compiled step; compile it at the first call."""
        if self.take is None:
            step = skip_nonfinite(self.step) if self.config.on_nonfinite == "skip" else self.step
            limit, how = self.length or 1, {"fixed": self.accelerator}
            self.take = CompiledStep(step, self.shardings, self.feed, self.mesh, limit, **how)
            self.clock.lap()
            self.take.compile(state)
            if self.accelerator and limit > 1:
                self.take.compile(state, limit)
            logger.info("compiled the training step in %.1f s", seconds := self.clock.lap())
            self.times["compile_seconds"] += seconds
        return self.take

    def measured(self, take: CompiledStep, state: PyTree, metrics: PyTree, began: float) -> None:
        """Record the duration of a single step; after MEASURED of them choose the steps per call and compile for it."""
        jax.block_until_ready(metrics)
        self.durations.append(time.perf_counter() - began)
        if len(self.durations) < MEASURED:
            return
        seconds = min(self.durations[1:])
        length = steps_a_call(seconds, math.gcd(*self.stops()))
        if jax.process_count() > 1:  # process 0 decides
            length = int(multihost_utils.broadcast_one_to_all(np.int32(length)))
        self.times["train_seconds"] += self.clock.lap()
        if length > 1:
            take.compile(state, length)
        self.times["compile_seconds"] += (compiled := self.clock.lap())
        logger.info("a step takes %.1f ms: %d steps a call, compiled in %.1f s", 1e3 * seconds, length, compiled)
        self.length = length

    def evaluate_first(self, start: int, pending: dict[str, float] | None, state: PyTree, write: Write) -> None:
        """Call the functions due before the first step, or those that an interrupted run still owes at ``start``."""
        if (pending is not None or not start) and (values := (pending or {}) | self.call_due(start, state)):
            write(start, values)
            if start:
                self.checkpoints.amend(start, {"metrics": values, "pending": None})

    def advance(
        self, take: CompiledStep, state: PyTree, start: int, write: Write, log: MetricsLog, bar: Progress
    ) -> PyTree:
        """Run the steps after ``start``; return the state after the last one."""
        finite, steps = NonFiniteMonitor(self.run, self.config.on_nonfinite), self.config.steps
        done, late = start, None
        self.since_save.lap()
        while done < steps:
            self.checkpoints.check()
            count = self.steps_of_call(done)
            rows = [next(self.feed.rows) for _ in range(count)]
            began = time.perf_counter()
            with self.watchdog():
                state, metrics = take(state, rows)
                if self.length is None:
                    self.measured(take, state, metrics, began)
                ready, late = late, CallResult(done, count, metrics, [ids_of(row) for row in rows])
                if ready:  # one call late, so that the device computes while the host logs and loads
                    for row in finite.rows(ready, state):
                        write(*row)
                signal, asked = self.signals.stop(self.save_is_due())
            done += count
            save = asked or signal or self.saves_at(done)
            if not save and not self.is_due(done):
                continue
            values = {}
            with self.watchdog():
                for step, values in finite.rows(late, state):
                    if step < done:
                        write(step, values)
            late, pending = None, None
            try:
                if signal and self.is_due(done):
                    raise Interrupted(signal)
                values |= self.call_due(done, state)
                write(done, values)
                bar.line(done, values)
            except Interrupted as interrupted:
                signal, pending = interrupted.number, values
            if save or signal:  # the signal may have come during the evaluation
                log.flush()
                with self.watchdog():
                    self.save(done, state, values, pending)
            if signal:
                raise Interrupted(signal)
        return state

    def watchdog(self) -> AbstractContextManager[None]:
        """With several processes, a context that must end within ``config.watchdog`` seconds."""
        return watchdog(self.config.watchdog if jax.process_count() > 1 else 0.0)

    def stops(self) -> list[int]:
        """The intervals, in steps, at which the host saves or evaluates."""
        return [stop for stop in (self.config.checkpoint_every, *(entry.steps for entry in self.every)) if stop]

    def steps_of_call(self, done: int) -> int:
        """The number of steps of the next call, chosen so that interruptions do not change the results."""
        left = min([self.config.steps - done, *(stop - done % stop for stop in self.stops())])
        length = self.length or 1
        if not self.accelerator:
            return min(length, left)
        return length if done % length == 0 and length <= left else 1

    def saves_at(self, done: int) -> bool:
        """Whether a checkpoint after ``done`` steps is due regardless of the time."""
        config = self.config
        in_turn = config.checkpoint_every and done % config.checkpoint_every == 0
        return done == config.steps or bool(in_turn) or (config.save_evaluations and self.is_due(done))

    def save_is_due(self) -> bool:
        """Whether ``checkpoint_seconds`` have passed since the last save; if so, restart the timer."""
        if not self.config.checkpoint_seconds or self.since_save.seconds() < self.config.checkpoint_seconds:
            return False
        self.since_save.lap()
        return True

    def is_due(self, done: int) -> bool:
        """Whether any function is due after ``done`` steps."""
        return any(done % entry.steps == 0 for entry in self.every)

    def call_due(self, done: int, state: PyTree) -> dict[str, float]:
        """Call every function due after ``done`` steps; return their merged metrics."""
        values: dict[str, float] = {}
        if not self.is_due(done):
            return values
        state, clock = local(state, self.mesh), Clock()
        with self.signals.raised(), jax.set_mesh(local_mesh(self.mesh)):
            for entry in self.every:
                if done % entry.steps == 0:
                    values |= {name: float(value) for name, value in entry.function(done, state).items()}
        self.times["evaluation_seconds"] += clock.seconds()
        return values

    def save(self, done: int, state: PyTree, metrics: dict[str, float], pending: dict[str, float] | None) -> None:
        """Save the state and everything the host needs to resume."""
        self.since_save.lap()
        self.times["train_seconds"] += self.clock.lap()
        host = {"batches": self.batches.get_state(), **self.times, "run": self.run.identity}
        host |= {"steps_per_call": self.length}
        self.checkpoints.save(done, state, {**host, "metrics": metrics, "pending": pending})


def ids_of(batch: Any) -> np.ndarray | None:
    """The ids of a batch's examples, or None if it has none."""
    return batch.get("id") if isinstance(batch, dict) else None


class Clock:
    """A stopwatch that measures seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._last

    def lap(self) -> float:
        """Start a new lap; return the seconds of the last one."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last
