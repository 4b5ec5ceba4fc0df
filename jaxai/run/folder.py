"""The folder of a run: config.json, metrics.jsonl, checkpoints/, samples/, summary.json."""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax

from jaxai.config import Common, Finished, is_resumable
from jaxai.distributed.processes import barrier, first_process
from jaxai.errors import UserError
from jaxai.run.files import rename_to_free, write_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """The folder of a run. ``folder`` exists; the files in it may not.

    ``identity`` holds the values that must be equal for a start to resume the run. With several processes, process 0
    writes to the ``shared`` folder itself, every other process to a ``folder`` of its own within it.
    """

    folder: Path
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    process: int = 0

    @property
    def shared(self) -> Path:
        return self.folder.parent.parent if self.process else self.folder

    @property
    def checkpoints(self) -> Path:
        return self.shared / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    def summary(self) -> dict[str, Any] | None:
        """The final figures of a finished run, or None; if the file is damaged, log a warning and return None."""
        path = self.shared / "summary.json"
        if not path.exists():
            return None
        try:
            summary = json.loads(path.read_bytes())
            if isinstance(summary["steps"], int):
                return summary
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        logger.warning("%s is damaged: the figures are computed again", path)
        return None

    def finished(self, steps: int) -> dict[str, Any] | None:
        """The final figures if the run has finished at least ``steps`` steps (logged); None if there is more to do."""
        summary = self.summary()
        if not summary or summary["steps"] < steps:
            return None
        logger.info("this run is finished")
        return summary

    def write_sample(self, name: str, text: str) -> None:
        """Write a text to samples/NAME."""
        self.samples.mkdir(exist_ok=True)
        (self.samples / name).write_text(text, encoding="utf-8")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.folder / "summary.json", summary)


def run_folder(experiment: str, config: Common | Finished) -> Path:
    """The folder of this config's run: ``--workdir``, or runs/EXPERIMENT/PRESET."""
    return config.workdir or Path("runs") / experiment / config.preset


def began_embedded(experiment: str, config: Common) -> bool:
    """Whether this run began with an embedded data set: it must then resume with it, even if a download is possible."""
    folder = run_folder(experiment, config)
    if config.data_dir or config.resume == "never" or not (folder / "config.json").exists():
        return False
    return bool(read_config(folder)["data"].get("embedded"))


def open_run(experiment: str, config: Common, data: Mapping[str, Any]) -> Run:
    """Create the folder of this config's run, or check that an existing one belongs to the same run.

    ``data`` describes the training data: name, fingerprint, whether embedded. Check all other user input before, since
    this writes files. Raises ValueError if the folder holds a run with another config or other data (naming the first
    difference), holds files but no run, or can't be used.
    """
    folder = run_folder(experiment, config)
    identity = run_identity(experiment, config, data)
    if first_process():
        make_folder(folder, config, identity)
    barrier("run opened")
    if process := jax.process_index():
        check_same(identity, read_config(folder), folder)
        folder = folder / "processes" / str(process)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", identity)
    return Run(folder, identity, process)


def make_folder(folder: Path, config: Common, identity: Mapping[str, Any]) -> None:
    """Create a run's folder, or check that the existing one belongs to the same run. Raises ValueError."""
    try:
        used = folder.is_dir() and any(path.name != "config.json.tmp" for path in folder.iterdir())
        if used and not (folder / "config.json").exists():
            raise UserError(f"{folder} holds files but no run (no config.json): choose another --workdir")
        if config.resume == "never" and used:
            with locked(Run(folder)):
                move_aside(folder)
        if (folder / "config.json").exists():
            check_same(identity, read_config(folder), folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", identity)
    except OSError as error:
        message = f"the run's folder {folder} can't be used ({error.strerror}): choose another --workdir"
        raise UserError(message) from error


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Lock a run's folder. Raises ValueError if another process holds the lock, which ends with its process."""
    descriptor = os.open(run.folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{run.folder} is in use, another process trains in it: wait for it, or choose another --workdir"
            raise UserError(message) from None
        except OSError:
            logger.warning("the file system of %s has no locks: make sure only one process trains in it", run.folder)
        yield
    finally:
        os.close(descriptor)


def config_from_json[T](kind: type[T], values: Mapping[str, Any]) -> T:
    """Build a config dataclass, nested ones included, from the values of a config.json; other fields keep defaults.

    Raises TypeError or ValueError for values that are invalid for the dataclass.
    """
    kinds, made = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(cast(Any, kind)):
        if field.name in values:
            value, hint = values[field.name], kinds[field.name]
            if dataclasses.is_dataclass(hint) and isinstance(value, dict):
                value = config_from_json(cast(type, hint), value)
            made[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**made)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of the config.json in a folder. Raises ValueError if it is damaged."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        raise UserError(f"{folder / 'config.json'} is damaged: --resume never moves the run aside and starts anew")
    return config


def run_identity(experiment: str, config: Common, data: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON values that must be equal for a start to resume a run."""
    free = {field.name for field in dataclasses.fields(config) if is_resumable(field)}
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in free}
    if taken := fields.keys() & {"experiment", "data"}:
        raise UserError(f"{type(config).__name__}.{min(taken)} is a name that config.json reserves: rename the field")
    return json.loads(json.dumps({"experiment": experiment, **fields, "data": dict(data)}))


def check_same(wanted: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError naming the first value in which the run in the folder differs from the requested one."""
    wanted, found = flat(wanted), flat(found)
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{folder} holds a run with {name} = {found.get(name)}, not {wanted.get(name)}: "
                "use another --workdir, or --resume never to move it aside and start anew"
            )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings, in order, under names such as optimizer.learning_rate."""
    result = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return result


def move_aside(folder: Path) -> None:
    """Rename a folder to the first free name folder.1, folder.2, ... and log it."""
    folder = folder.absolute()
    logger.info("moved the earlier run to %s", rename_to_free(folder, folder.name))
