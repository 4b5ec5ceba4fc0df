"""The one host loop: batches in, steps on the device, metrics and checkpoints out; it can stop anywhere and go on."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from jaxai.train.checkpoint import Checkpoints
from jaxai.train.log import MetricsLog, Progress
from jaxai.train.run import Run, write_json
from jaxai.train.sharding import batch_sharding, put_batch, state_sharding
from jaxai.typing import Array, PyTree

logger = logging.getLogger(__name__)

Step = Callable[[Any, Any], tuple[Any, dict[str, Array]]]
"""(state, batch) -> (state, metrics): pure, not jitted."""


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
) -> Result:
    """Train until ``steps``, from the newest checkpoint of the run or from ``init()``.

    The step is jitted with the state donated and sharded over the devices. Raises FloatingPointError at the first
    metric that is not finite, after writing ``nonfinite.json``; nothing of that step is saved.
    """
    shapes = jax.eval_shape(init)
    shardings = state_sharding(shapes, mesh, shard_parameters=shard_parameters)
    put = partial(put_batch, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh), closing(Checkpoints(run.checkpoints)) as checkpoints:
        start = checkpoints.latest_step() or 0
        compile_seconds = train_seconds = 0.0
        if start:
            state, host = checkpoints.restore(start, shapes, shardings)
            batches.set_state(host["batches"])
            compile_seconds, train_seconds = host["compile_seconds"], host["train_seconds"]
            logger.info("going on from step %d of %s", start, run.folder)
        else:
            state = jax.jit(init, out_shardings=shardings)()
        if start >= steps:
            return Result(state, compile_seconds, train_seconds)
        clock = Clock()
        compiled = compile_step(step, state, shardings, batches, put)
        logger.info("compiled the training step in %.1f s", seconds := clock.lap())
        compile_seconds += seconds
        with (
            closing(MetricsLog(run.metrics, start, tensorboard=tensorboard)) as log,
            closing(Progress(run.folder.name, start, steps, show)) as progress,
        ):

            def write(step: int, values: Mapping[str, float]) -> None:
                log.write(step, values)
                progress.update(step, values)

            if not start and (values := call_due(0, state, every)):
                log.write(0, values)
            late = None
            for done in range(start + 1, steps + 1):
                state, metrics = compiled(state, put(next(batches)))
                if late:  # one step late: the device works while the host fetches and prepares
                    write(late[0], finite(*late, state, run))
                late = (done, metrics)
                save = done % checkpoint_every == 0 or done == steps
                if save or any(done % entry.steps == 0 for entry in every):
                    late = None
                    values = finite(done, metrics, state, run)
                    write(done, values | call_due(done, state, every))
                    progress.line(done, values)
                if save:
                    log.flush()
                    train_seconds += clock.lap()
                    times = {"compile_seconds": compile_seconds, "train_seconds": train_seconds}
                    checkpoints.save(done, state, {"batches": batches.get_state(), **times})
    return Result(state, compile_seconds, train_seconds)


class Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def compile_step(
    step: Step, state: PyTree, shardings: PyTree, batches: Batches, put: Callable[[PyTree], PyTree]
) -> Callable[[PyTree, PyTree], tuple[PyTree, dict[str, Array]]]:
    """The step compiled for this state and the iterator's batches, whose position stays where it is."""
    position = batches.get_state()
    batch = put(next(batches))
    batches.set_state(position)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)).lower(state, batch).compile()


def call_due(done: int, state: Any, every: Sequence[Every]) -> dict[str, float]:
    """Call every function whose turn it is after ``done`` steps; their metrics together."""
    values = {}
    for entry in every:
        if done % entry.steps == 0:
            values |= entry.function(done, state)
    return values


def finite(step: int, metrics: Mapping[str, Array], state: PyTree, run: Run) -> dict[str, float]:
    """The metrics on the host. Raises FloatingPointError, after writing a report, if one is NaN or infinite.

    The report counts the bad elements of ``state``, which may be one step further than the metrics.
    """
    values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        report = run.folder / "nonfinite.json"
        details = {"metrics": {name: repr(value) for name, value in values.items()}}
        write_json(report, {"step": step, "not_finite": bad, **details, "leaves": leaves_not_finite(state)})
        raise FloatingPointError(
            f"{bad[0]} is {values[bad[0]]} at step {step}, see {report}: "
            "lower the learning rate and start again with --resume never"
        )
    return values


def leaves_not_finite(state: PyTree) -> dict[str, int]:
    """How many elements of each float leaf are NaN or infinite, for the leaves that have any."""
    counts = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
            count = int(leaf.size - jax.numpy.isfinite(leaf).sum())
            if count:
                counts[jax.tree_util.keystr(path, simple=True, separator="/")] = count
    return counts
