"""Everything that experiments share: from a built `Task` to a finished run.

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
    """Pure functions of a training state: its first value, one step, and the parameters that a run ends with."""

    def init(self, keys: Keys) -> Any: ...

    def step(self, state: Any, batch: Any) -> tuple[Any, dict[str, Array]]: ...

    def params(self, state: Any) -> PyTree: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A training, built but not started.

    ``identity`` names the data (name, fingerprint, whether embedded): a run continues only on the same. ``source``
    says in one line where it came from. ``batches(process_index=, process_count=)`` makes this process's rows of
    the batches of ``batch_size`` examples. ``evaluate(run, step, state)`` gives metrics every ``eval_every`` steps;
    its last value is in the summary. ``finish(run, result)`` draws the final pictures and gives the final scores.
    ``report(run, summary)`` prints. ``vocabulary``, JSON values, becomes vocabulary.json.
    """

    identity: Mapping[str, Any]
    source: str
    batches: Callable[..., Batches]
    trainer: Trainer
    report: Callable[[Run, dict[str, Any]], None]
    finish: Callable[[Run, Result], dict[str, Any]]
    batch_size: int = 0
    """Must divide over the devices; 0: unknown."""
    batch_option: str = "--batch-size"
    """The option that sets ``batch_size``."""
    devices: int = 0
    """Devices to use unless ``--devices`` says otherwise; 0: all."""
    evaluate: Callable[[Run, int, Any], dict[str, float]] | None = None
    eval_every: int = 0
    show: Sequence[str] = ("loss",)
    """Metrics in the progress bar."""
    steps_per_call: int | None = None
    vocabulary: Mapping[str, Any] | None = None


def run[ConfigT: Training](
    name: str,
    presets: Mapping[str, ConfigT],
    build: Callable[[ConfigT], Task],
    description: str | None,
    commands: Mapping[str, tuple[Callable[[Any], None], type[Platform]]] = MappingProxyType({}),
) -> None:
    """The command of an experiment: train, or one of ``commands``, each a function and the dataclass of its options."""
    cli.run(partial(train, name, build), presets, description, commands)


def train[ConfigT: Training](name: str, build: Callable[[ConfigT], Task], config: ConfigT) -> None:
    """Start a run or continue it, until its summary is written; report the summary of a finished one."""
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
    """Evaluates a task's state, and keeps the last values."""

    def __init__(self, run: Run, task: Task) -> None:
        self._run, self._task = run, task
        self._step, self._values = -1, {}

    def __call__(self, step: int, state: Any) -> dict[str, float]:
        if self._task.evaluate and step != self._step:
            self._values = self._task.evaluate(self._run, step, state)
            self._step = step
        return self._values

    def last(self, step: int, state: Any) -> dict[str, float]:
        """The values at the last step, which may be none of those that are evaluated during training."""
        try:
            return self(step, state)
        except Rollback as error:  # too late: the training is over
            logger.warning("%s", error)
            return {}


def summarize(run: Run, task: Task, result: Result, evaluation: Evaluation) -> dict[str, Any]:
    """Score the final state, write weights and model card, and collect the figures of summary.json."""
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
    """Training images of a data set; a run that began with the embedded set continues with it."""
    return load(dataset, "train", data_dir=config.data_dir, embedded_only=began_embedded(name, config))


def splits(name: str, config: Training, dataset: str, *, held_out: int = 0) -> tuple[ImageDataset, ImageDataset]:
    """`training_split` and the test images.

    With ``held_out`` the last so many training images are left out and returned in place of the test images.
    """
    train = training_split(name, config, dataset)
    if not held_out:
        return train, load(dataset, "test", data_dir=config.data_dir, embedded_only=train.embedded)
    kept = len(train.labels) - held_out
    if kept < 1:
        raise UserError(f"--held-out must be less than {len(train.labels):,}, got {held_out}")
    first = dataclasses.replace(train, images=train.images[:kept], labels=train.labels[:kept])
    return first, dataclasses.replace(train, images=train.images[kept:], labels=train.labels[kept:])
