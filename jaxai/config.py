"""Options that every command shares, as frozen dataclasses."""

import dataclasses
import importlib.util
import math
import re
from pathlib import Path
from typing import Literal

from jaxai.errors import UserError


def resumable[T](default: T) -> T:
    """The dataclass field of an option that may differ between two starts of one run; every other option may not."""
    return dataclasses.field(default=default, metadata={"resumable": True})


def is_resumable(field: dataclasses.Field) -> bool:
    """Whether a field was declared with `resumable`."""
    return field.metadata.get("resumable", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Platform:
    """Where to run."""

    platform: Literal["auto", "cpu", "gpu", "tpu"] = resumable("auto")
    """Where to run; auto takes what JAX finds."""
    devices: int = resumable(0)
    """How many devices to use; 0 means all of them. On a CPU, N > 0 splits it into N devices."""

    def __post_init__(self) -> None:
        self.check_at_least(0, "devices")

    def check_at_least(self, least: float, *names: str) -> None:
        """Raise ValueError for the first of these fields that is less than ``least``, or NaN."""
        for name in names:
            if not getattr(self, name) >= least:
                option = name.replace("_", "-")
                raise UserError(f"--{option} must be at least {least}, got {getattr(self, name)}")

    def check_finite(self, *names: str) -> None:
        """Raise ValueError for the first of these fields that is NaN or infinite."""
        for name in names:
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"--{name.replace('_', '-')} must be finite, got {getattr(self, name)}")

    def check_positive(self, *names: str) -> None:
        """Raise ValueError for the first of these fields that is not positive and finite."""
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common(Platform):
    """Options of every experiment."""

    preset: str = "default"
    """Which set of values to start from; the other options change single ones."""
    steps: int = resumable(1000)
    """When to stop. A finished run goes on with a larger number; schedules do not depend on it."""
    seed: int = 0
    """Of parameters, noise and the order of the data."""
    workdir: Path | None = resumable(None)
    """The run's folder; runs/EXPERIMENT/PRESET by default."""
    data_dir: Path | None = resumable(None)
    """A folder with official data files or a prepared tensorflow-datasets folder."""
    resume: Literal["auto", "never"] = resumable("auto")
    """auto goes on with the run in the folder; never moves it aside, says so, and starts anew."""
    tensorboard: bool = resumable(False)
    """Also write TensorBoard events (extra: tensorboard)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "steps")
        self.check_at_least(0, "seed")
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise UserError("--tensorboard needs the extra: pip install -e '.[tensorboard]'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Common):
    """Options of every experiment that trains in steps."""

    coordinator: str = resumable("")
    """Join other processes: HOST:PORT of the first, or auto under SLURM, Open MPI, Kubernetes; --devices is of each."""
    num_processes: int = resumable(0)
    """How many there are, unless auto tells."""
    process_id: int = resumable(-1)
    """Which one this is, 0 to num_processes - 1, unless auto tells."""
    watchdog: float = resumable(600.0)
    """With several processes: after so many seconds in a step, print where every thread stands and end; 0: wait."""
    mesh: str = resumable("")
    """How to split batch and parameters over the devices: data=4,model=2; all of them for the batch by default."""
    shard_parameters: bool = resumable(False)
    """Shard parameters and optimiser state over the devices as well as the batch."""
    checkpoint_seconds: float = resumable(60.0)
    """Seconds between two checkpoints; 0: none by time. The last step always has one."""
    checkpoint_every: int = resumable(0)
    """Also a checkpoint every so many steps; 0: by time alone."""
    keep: int = resumable(2)
    """How many of the newest checkpoints stay."""
    keep_lowest: tuple[str, ...] = resumable(())
    """Metrics of which the checkpoint with the lowest value stays as well, such as validation_loss; there is then a
    checkpoint at each evaluation."""
    keep_highest: tuple[str, ...] = resumable(())
    """The same with the highest value."""
    on_nonfinite: Literal["abort", "skip", "rollback"] = resumable("abort")
    """At a NaN or an infinity: stop; leave that step out, up to nine in a row; or go back to the last checkpoint and on
    with other noise, three times. nonfinite.json tells step, batch and worst leaf."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "keep")
        self.check_at_least(0, "checkpoint_every", "checkpoint_seconds", "watchdog")
        if self.watchdog > 1e6:
            raise UserError(f"--watchdog must be at most 1e6 seconds, got {self.watchdog}; 0 is none")
        axes = mesh_axes(self.mesh)
        if self.devices and self.mesh and not self.coordinator and self.devices != math.prod(axes.values()):
            raise UserError(f"--mesh {self.mesh} is not of --devices {self.devices}: leave one of them out")
        if self.coordinator not in ("", "auto"):
            host, _, port = self.coordinator.rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 2**16):
                raise UserError(f"--coordinator must be HOST:PORT or auto, got {self.coordinator}")
            if not 0 <= self.process_id < self.num_processes:
                raise UserError(
                    "--coordinator HOST:PORT wants --num-processes N and --process-id of 0 to N - 1, got "
                    f"{self.num_processes} and {self.process_id}"
                )
        elif self.num_processes or self.process_id >= 0:
            raise UserError("--num-processes and --process-id want --coordinator HOST:PORT")

    @property
    def save_evaluations(self) -> bool:
        """Whether there is a checkpoint at each evaluation: where the best ones stay."""
        return bool(self.keep_lowest or self.keep_highest)

    @property
    def devices_here(self) -> int:
        """How many devices this process uses; 0: all."""
        axes = mesh_axes(self.mesh)
        return self.devices if self.coordinator or not axes else math.prod(axes.values())


def mesh_axes(text: str) -> dict[str, int]:
    """The sizes of a mesh's axes from ``data=4,model=2``; of none from an empty text. Raises ValueError."""
    found = re.fullmatch(r"data=([1-9]\d{0,5})(?:,model=([1-9]\d{0,5}))?", text)
    if text and not found:
        raise UserError(f"--mesh must look like data=4 or data=4,model=2, got {text}")
    return {"data": int(found[1]), "model": int(found[2] or 1)} if found else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished(Platform):
    """Which finished run a command takes up."""

    preset: str = "default"
    """Whose run: that in runs/EXPERIMENT/PRESET, unless there is a workdir."""
    workdir: Path | None = None
    """The run's folder."""
