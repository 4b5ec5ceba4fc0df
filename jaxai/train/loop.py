"""The one host loop: batches in, steps on the device, metrics and checkpoints out; it can stop anywhere and go on."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike

from jaxai.command import Stopped
from jaxai.train.checkpoint import Checkpoints
from jaxai.train.log import MetricsLog, Progress
from jaxai.train.run import Run, write_json
from jaxai.train.sharding import batch_sharding, put_batch, state_sharding
from jaxai.typing import Array, PyTree

logger = logging.getLogger(__name__)

SETBACKS = 3  # after so many a run stops

Step = Callable[[Any, Any], tuple[Any, dict[str, Array]]]
"""(state, batch) -> (state, metrics): pure, not jitted."""

Take = Callable[[PyTree, list[PyTree]], tuple[PyTree, dict[str, Array]]]
"""(state, batches) -> (state, each metric of all steps): compiled."""


@runtime_checkable
class Batches(Iterator[Any], Protocol):
    """An endless iterator over batches (numpy) whose position can be saved: grain's iterators are such."""

    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Every:
    """Call ``function(done, state)`` before step 1 and after every ``steps`` steps; log the metrics it returns."""

    steps: int
    function: Callable[[int, Any], dict[str, float]]


class Setback(Exception):
    """Raised by a function that `Every` calls: training shall go back to where all was well, and on with other noise.

    The message says what went wrong, ``well`` the last step before it.
    """

    def __init__(self, message: str, well: int) -> None:
        super().__init__(message)
        self.well = well


@dataclasses.dataclass(frozen=True)
class Result:
    """The state after the last step, and where the time went (seconds, over all starts of the run)."""

    state: Any
    compile_seconds: float
    train_seconds: float


def fit(
    step: Step,
    init: Callable[[], PyTree],
    batches: Batches,
    *,
    run: Run,
    steps: int,
    checkpoint_every: int,
    every: Sequence[Every] = (),
    show: Sequence[str] = ("loss",),
    mesh: Mesh,
    shard_parameters: bool = False,
    tensorboard: bool = False,
    steps_per_call: int = 1,
) -> Result:
    """Train until ``steps``, from the newest checkpoint of the run or from ``init()``.

    The step is jitted with the state donated and sharded over the devices. With ``steps_per_call`` the device takes so
    many steps, or fewer before a checkpoint, without the host in between: worth it where steps are short, but not for
    `jax.lax` convolutions on CPU, which are slow inside a loop. Raises FloatingPointError at the first metric that is
    not finite, after writing ``nonfinite.json``; nothing of that step is saved.

    A `Setback` deletes the checkpoints after its step and goes on from the newest that is left, or from the start, on
    the same batches with another ``state.key``; ``setbacks.json`` lists them. The fourth raises Stopped.
    """
    shapes = jax.eval_shape(init)
    shardings = state_sharding(shapes, mesh, shard_parameters=shard_parameters)
    times = {"compile_seconds": 0.0, "train_seconds": 0.0}
    clock, first, setbacks, take = Clock(), batches.get_state(), read_setbacks(run), None

    def begin() -> tuple[PyTree, int]:
        """The state to go on from, and its step."""
        start = checkpoints.latest_step() or 0
        if start:
            state, host = checkpoints.restore(start, shapes, shardings)
            batches.set_state(host["batches"])
            if take is None:  # else more time has passed than this checkpoint knows
                times.update({name: host[name] for name in times})
            logger.info("going on from step %d of %s", start, run.folder)
        else:
            state = jax.jit(init, out_shardings=shardings)()
            batches.set_state(first)
        if setbacks and setbacks[-1]["to"] == start:
            state = jax.jit(partial(with_other_noise, number=len(setbacks)), out_shardings=shardings)(state)
        return state, start

    def advance(take: Take, state: PyTree, start: int, log: MetricsLog, progress: Progress) -> PyTree:
        """The state at the last step."""

        def write(step: int, values: Mapping[str, float]) -> None:
            log.write(step, values)
            progress.update(step, values)

        if not start and (values := call_due(0, state, every)):
            log.write(0, values)
        done, late = start, None
        stops = [checkpoint_every, *(entry.steps for entry in every)]
        while done < steps:
            count = min(steps_per_call, steps - done, *(stop - done % stop for stop in stops))
            state, metrics = take(state, [next(batches) for _ in range(count)])
            ready, late = late, (done, count, metrics)
            if ready:  # one call late: the device works while the host fetches and prepares
                for row in finite_rows(*ready, state, run):
                    write(*row)
            done += count
            save = done % checkpoint_every == 0 or done == steps
            if save or any(done % entry.steps == 0 for entry in every):
                for number, values in finite_rows(*late, state, run):
                    write(number, values | (call_due(done, state, every) if number == done else {}))
                    if number == done:
                        progress.line(number, values)
                late = None
            if save:
                log.flush()
                times["train_seconds"] += clock.lap()
                checkpoints.save(done, state, {"batches": batches.get_state(), **times})
        return state

    with jax.set_mesh(mesh), closing(Checkpoints(run.checkpoints)) as checkpoints:
        while True:
            state, start = begin()
            if start >= steps:
                return Result(state, **times)
            if take is None:
                clock.lap()
                take = compile_steps(step, state, shardings, batches, mesh, steps_per_call)
                logger.info("compiled the training step in %.1f s", seconds := clock.lap())
                times["compile_seconds"] += seconds
            # without a checkpoint the line of step 0 is written anew as well
            with (
                closing(MetricsLog(run.metrics, start or -1, tensorboard=tensorboard)) as log,
                closing(Progress(run.folder.name, start, steps, show)) as progress,
            ):
                try:
                    return Result(advance(take, state, start, log, progress), **times)
                except Setback as setback:
                    times["train_seconds"] += clock.lap()
                    go_back(run, checkpoints, setback, setbacks)


def go_back(run: Run, checkpoints: Checkpoints, setback: Setback, setbacks: list[dict[str, Any]]) -> None:
    """Delete the checkpoints after the step at which all was well, note it, say so. Stopped at the fourth time."""
    if len(setbacks) == SETBACKS:
        raise Stopped(f"{setback}; {SETBACKS} times before it went back (setbacks.json): change the training")
    to = checkpoints.drop_after(setback.well)
    setbacks.append({"reason": str(setback), "to": to})
    if jax.process_index() == 0:
        write_json(run.folder / "setbacks.json", {"setbacks": setbacks})
    logger.warning("%s: back to step %d, with other noise", setback, to)


def read_setbacks(run: Run) -> list[dict[str, Any]]:
    """The ``reason`` of each time that this run went back, and the step ``to`` which it did."""
    path = run.folder / "setbacks.json"
    return json.loads(path.read_text())["setbacks"] if path.exists() else []


def with_other_noise(state: Any, number: int) -> Any:
    """A state whose ``key`` is new, for each number >= 1 another: its keys, where there are several."""
    fold = partial(jax.random.fold_in, data=2**32 - 1 - number)  # a number that no step has
    return state.replace(key=jax.vmap(fold)(state.key) if state.key.ndim else fold(state.key))


class Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def compile_steps(step: Step, state: PyTree, shardings: PyTree, batches: Batches, mesh: Mesh, limit: int = 1) -> Take:
    """(state, 1 to ``limit`` batches) -> (state, each metric [limit]): that many steps, the rest of the metrics 0.

    One program for every number of batches, compiled for this state and the shapes of the iterator's next batch, whose
    position stays where it is; batches of other shapes get theirs when they come. Batches of one call have one shape.
    """
    sharding = batch_sharding(mesh, axis=1)

    def put(rows: list[PyTree]) -> PyTree:
        rows = rows + rows[-1:] * (limit - len(rows))
        return put_batch(jax.tree.map(lambda *x: np.stack(x) if limit > 1 else x[0][None], *rows), sharding)

    function = jax.jit(several(step, limit), donate_argnums=0, out_shardings=(shardings, None))
    programs: dict[tuple, Any] = {}

    def program(state: PyTree, stack: PyTree) -> Any:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(stack))
        if shapes not in programs:
            programs[shapes] = function.lower(state, stack, np.int32(1)).compile()
        return programs[shapes]

    def take(state: PyTree, rows: list[PyTree]) -> tuple[PyTree, dict[str, Array]]:
        stack = put(rows)
        return program(state, stack)(state, stack, np.int32(len(rows)))

    position = batches.get_state()
    program(state, put([next(batches)]))
    batches.set_state(position)
    return take


def several(step: Step, limit: int) -> Callable[[PyTree, PyTree, Array], tuple[PyTree, dict[str, Array]]]:
    """(state, stacked batches [limit, ...], count []) -> (state, stacked metrics): the first ``count`` steps."""

    def take(state: PyTree, stack: PyTree, index: ArrayLike) -> tuple[PyTree, dict[str, Array]]:
        return step(state, jax.tree.map(lambda x: x[index], stack))

    def loop(state: PyTree, stack: PyTree, count: Array) -> tuple[PyTree, dict[str, Array]]:
        def body(index: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            state, metrics = take(carry[0], stack, index)
            return state, jax.tree.map(lambda rows, one: rows.at[index].set(one), carry[1], metrics)

        shapes = jax.eval_shape(take, state, stack, 0)[1]
        empty = jax.tree.map(lambda x: jnp.zeros((limit, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, empty))

    def once(state: PyTree, stack: PyTree, count: Array) -> tuple[PyTree, dict[str, Array]]:
        state, metrics = take(state, stack, 0)
        return state, jax.tree.map(lambda x: x[None], metrics)

    return loop if limit > 1 else once


def call_due(done: int, state: Any, every: Sequence[Every]) -> dict[str, float]:
    """Call every function whose turn it is after ``done`` steps; their metrics together."""
    values = {}
    for entry in every:
        if done % entry.steps == 0:
            values |= entry.function(done, state)
    return values


def finite_rows(
    done: int, count: int, metrics: Mapping[str, Array], state: PyTree, run: Run
) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, its metrics) on the host, for ``count`` steps after ``done``.

    Raises FloatingPointError at the first that has a NaN or an infinity, after writing a report. The report counts the
    bad elements of ``state``, which may be further than that step.
    """
    columns = jax.device_get(dict(metrics))
    for row in range(count):
        step, values = done + row + 1, {name: float(column[row]) for name, column in columns.items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            report = run.folder / "nonfinite.json"
            details = {"metrics": {name: repr(value) for name, value in values.items()}}
            write_json(report, {"step": step, "not_finite": bad, **details, "leaves": leaves_not_finite(state)})
            raise FloatingPointError(
                f"{bad[0]} is {values[bad[0]]} at step {step}, see {report}: "
                "lower the learning rate and start again with --resume never"
            )
        yield step, values


def leaves_not_finite(state: PyTree) -> dict[str, int]:
    """How many elements of each float leaf are NaN or infinite, for the leaves that have any."""
    counts = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
            count = int(leaf.size - jax.numpy.isfinite(leaf).sum())
            if count:
                counts[jax.tree_util.keystr(path, simple=True, separator="/")] = count
    return counts
