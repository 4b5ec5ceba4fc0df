"""The part that all experiments share: from a `Task` to a finished run.

An experiment declares ``Config``, ``PRESETS`` and ``build(config) -> Task``, and ends with
``experiment.run(NAME, PRESETS, build, __doc__)``.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax

from jaxai import cli
from jaxai.config import Platform, Training
from jaxai.data import ImageDataset, load
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.errors import Rollback, UserError
from jaxai.run.card import write_card
from jaxai.run.files import write_json
from jaxai.run.folder import Run, began_embedded, open_run
from jaxai.run.weights import parameter_count, save_weights
from jaxai.train.feed import Batches
from jaxai.train.keys import Keys
from jaxai.train.loop import Every, Result, fit
from jaxai.typing import Array, PyTree

logger = logging.getLogger(__name__)


@runtime_checkable
class Trainer(Protocol):
    """Pure functions of a training state: initialise it, advance it by one step, extract the trained parameters."""

    def init(self, keys: Keys) -> Any: ...

    def step(self, state: Any, batch: Any) -> tuple[Any, dict[str, Array]]: ...

    def params(self, state: Any) -> PyTree: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """The definition of a training run.

    ``identity`` identifies the data (name, fingerprint, whether embedded): a run resumes only with the same.
    ``source`` describes its origin in one line. ``batches(process_index=, process_count=)`` returns this process's part
    of the batches of ``batch_size`` examples. ``evaluate(run, step, state)`` returns metrics, every ``eval_every``
    steps; the last ones enter the summary. ``finish(run, result)`` draws the final pictures and returns the final
    metrics. ``report(run, summary)`` prints the result. ``vocabulary`` (JSON values) is written to vocabulary.json.
    """

    identity: Mapping[str, Any]
    source: str
    batches: Callable[..., Batches]
    trainer: Trainer
    report: Callable[[Run, dict[str, Any]], None]
    finish: Callable[[Run, Result], dict[str, Any]]
    batch_size: int = 0
    """Examples per batch, a multiple of the size of the mesh axis ``data``; 0: unknown."""
    batch_option: str = "--batch-size"
    """The option that sets ``batch_size``."""
    devices: int = 0
    """Number of devices to use without ``--devices``; 0: all."""
    evaluate: Callable[[Run, int, Any], dict[str, float]] | None = None
    eval_every: int = 0
    show: Sequence[str] = ("loss",)
    """Metrics shown in the progress bar."""
    steps_per_call: int | None = None
    vocabulary: Mapping[str, Any] | None = None


def run[ConfigT: Training](
    name: str,
    presets: Mapping[str, ConfigT],
    build: Callable[[ConfigT], Task],
    description: str | None,
    commands: Mapping[str, tuple[Callable[[Any], None], type[Platform]]] = MappingProxyType({}),
) -> None:
    """Run an experiment's command line: training, or one of ``commands``: name -> (function, dataclass of options)."""
    cli.run(partial(train, name, build), presets, description, commands)


def train[ConfigT: Training](name: str, build: Callable[[ConfigT], Task], config: ConfigT) -> None:
    """Start or resume a run, train it to the end and write its summary; only report the summary of a finished run."""
    task = build(config)
    mesh = make_mesh(
        config.devices or task.devices,
        batch_size=task.batch_size,
        shape=config.mesh,
        batch_option=task.batch_option,
    )
    with jax.set_mesh(mesh):
        batches = task.batches(**processes(mesh))
    run = open_run(name, config, task.identity)
    if summary := run.finished(config.steps):
        task.report(run, summary)
        return
    if task.vocabulary is not None:
        write_json(run.folder / "vocabulary.json", task.vocabulary)
    last = Evaluation(run, task)
    result = fit(
        task.trainer.step,
        partial(task.trainer.init, Keys(config.seed)),
        batches,
        config,
        run=run,
        mesh=mesh,
        every=[Every(task.eval_every, last)] if task.evaluate else [],
        show=task.show,
        steps_per_call=task.steps_per_call,
    )
    summary = summarize(run, task, result, last)
    run.write_summary(summary)
    task.report(run, summary)


class Evaluation:
    """Evaluate a task's state; calls for the same step return the cached values."""

    def __init__(self, run: Run, task: Task) -> None:
        self._run, self._task = run, task
        self._step, self._values = -1, {}

    def __call__(self, step: int, state: Any) -> dict[str, float]:
        if self._task.evaluate and step != self._step:
            self._values = self._task.evaluate(self._run, step, state)
            self._step = step
        return self._values

    def last(self, step: int, state: Any) -> dict[str, float]:
        """The metrics at the last step, which is not always one of the evaluation steps."""
        try:
            return self(step, state)
        except Rollback as error:  # too late to roll back: training is over
            logger.warning("%s", error)
            return {}


def summarize(run: Run, task: Task, result: Result, evaluation: Evaluation) -> dict[str, Any]:
    """Evaluate the final state, write weights and model card, and return the content of summary.json."""
    logger.info("scoring")
    params = jax.device_get(task.trainer.params(result.state))
    summary = {
        "steps": result.step,
        "data": task.source,
        **evaluation.last(result.step, result.state),
        "parameters": parameter_count(params),
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
        **task.finish(run, result),
    }
    save_weights(run.folder / "model.safetensors", params, run.identity, task.vocabulary)
    write_card(run, summary)
    return summary


def training_split(name: str, config: Training, dataset: str) -> ImageDataset:
    """Training images of a data set; a run that began with the embedded one resumes with it."""
    return load(dataset, "train", data_dir=config.data_dir, embedded_only=began_embedded(name, config))


def splits(name: str, config: Training, dataset: str, *, held_out: int = 0) -> tuple[ImageDataset, ImageDataset]:
    """`training_split` and the test images.

    With ``held_out`` > 0, that many training images are split off the end and returned instead of the test images.
    ValueError if none would remain.
    """
    train = training_split(name, config, dataset)
    if not held_out:
        return train, load(dataset, "test", data_dir=config.data_dir, embedded_only=train.embedded)
    kept = len(train.labels) - held_out
    if kept < 1:
        raise UserError(f"--held-out must be less than {len(train.labels):,}, got {held_out}")
    first = dataclasses.replace(train, images=train.images[:kept], labels=train.labels[:kept])
    return first, dataclasses.replace(train, images=train.images[kept:], labels=train.labels[kept:])
