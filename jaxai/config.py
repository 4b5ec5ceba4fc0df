"""Command-line options shared by all commands, as frozen dataclasses."""

import dataclasses
import importlib.util
import math
import re
from pathlib import Path
from typing import Literal

from jaxai.errors import UserError


def resumable[T](default: T) -> T:
    """Declare a dataclass field whose option may change when a run is resumed; all other options must stay the same."""
    return dataclasses.field(default=default, metadata={"resumable": True})


def is_resumable(field: dataclasses.Field) -> bool:
    """Whether a field was declared with `resumable`."""
    return field.metadata.get("resumable", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Platform:
    """Where to run."""

    platform: Literal["auto", "cpu", "gpu", "tpu"] = resumable("auto")
    """Platform to run on; auto lets JAX choose."""
    devices: int = resumable(0)
    """Number of devices to use; 0: all. N > 0 splits a CPU into N devices."""

    def __post_init__(self) -> None:
        self.check_at_least(0, "devices")

    def check_at_least(self, least: float, *names: str) -> None:
        """Raise ValueError for the first of these fields that is NaN or less than ``least``."""
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
    """Named set of default values, which the other options override."""
    steps: int = resumable(1000)
    """Total number of training steps. A larger number extends a finished run; schedules do not depend on it."""
    seed: int = 0
    """Seed of initial parameters, noise and the order of the data."""
    workdir: Path | None = resumable(None)
    """The run's folder; runs/EXPERIMENT/PRESET by default."""
    data_dir: Path | None = resumable(None)
    """A folder with official data files or a prepared tensorflow-datasets folder."""
    resume: Literal["auto", "never"] = resumable("auto")
    """auto: resume the run in the folder, if any; never: rename that folder and start a new run."""
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
    """HOST:PORT of process 0, to run several processes, or auto under SLURM, Open MPI or Kubernetes; --devices then
    counts those of each process."""
    num_processes: int = resumable(0)
    """Number of processes, with --coordinator HOST:PORT."""
    process_id: int = resumable(-1)
    """Index of this process, 0 to num_processes - 1, with --coordinator HOST:PORT."""
    watchdog: float = resumable(600.0)
    """With several processes: seconds after which a hanging step dumps all threads' tracebacks and exits; 0: never."""
    mesh: str = resumable("")
    """Device mesh over which batch (data) and parameters (model) are split, like data=4,model=2; default: all data."""
    shard_parameters: bool = resumable(False)
    """Shard parameters and optimiser state over the data axis too (FSDP)."""
    checkpoint_seconds: float = resumable(60.0)
    """Seconds between checkpoints; 0: none by time. There is always one after the last step."""
    checkpoint_every: int = resumable(0)
    """Steps between additional checkpoints; 0: none."""
    keep: int = resumable(2)
    """Number of newest checkpoints to keep."""
    keep_lowest: tuple[str, ...] = resumable(())
    """Metrics, such as validation_loss, whose checkpoint with the lowest value is also kept; saves a checkpoint at each
    evaluation."""
    keep_highest: tuple[str, ...] = resumable(())
    """Metrics whose checkpoint with the highest value is also kept, as for keep_lowest."""
    on_nonfinite: Literal["abort", "skip", "rollback"] = resumable("abort")
    """On a NaN or infinity: abort; skip that update, up to nine in a row; or roll back to the last good checkpoint and
    resume with a new key, up to three times. nonfinite.json reports step, batch and worst leaf."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "keep")
        self.check_at_least(0, "checkpoint_every", "checkpoint_seconds", "watchdog")
        if self.watchdog > 1e6:
            raise UserError(f"--watchdog must be at most 1e6 seconds, got {self.watchdog}; 0 disables it")
        axes = mesh_axes(self.mesh)
        if self.devices and self.mesh and not self.coordinator and self.devices != math.prod(axes.values()):
            raise UserError(f"--mesh {self.mesh} does not match --devices {self.devices}: leave one of them out")
        if self.coordinator not in ("", "auto"):
            host, _, port = self.coordinator.rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 2**16):
                raise UserError(f"--coordinator must be HOST:PORT or auto, got {self.coordinator}")
            if not 0 <= self.process_id < self.num_processes:
                raise UserError(
                    "--coordinator HOST:PORT needs --num-processes N and --process-id of 0 to N - 1, got "
                    f"{self.num_processes} and {self.process_id}"
                )
        elif self.num_processes or self.process_id >= 0:
            raise UserError("--num-processes and --process-id need --coordinator HOST:PORT")

    @property
    def save_evaluations(self) -> bool:
        """Whether to save a checkpoint at each evaluation, as keeping the best ones requires."""
        return bool(self.keep_lowest or self.keep_highest)

    @property
    def devices_here(self) -> int:
        """Number of devices this process uses; 0: all."""
        axes = mesh_axes(self.mesh)
        return self.devices if self.coordinator or not axes else math.prod(axes.values())


def mesh_axes(text: str) -> dict[str, int]:
    """Parse ``data=4,model=2`` into the sizes of the mesh axes; {} for an empty text. ValueError for any other text."""
    found = re.fullmatch(r"data=([1-9]\d{0,5})(?:,model=([1-9]\d{0,5}))?", text)
    if text and not found:
        raise UserError(f"--mesh must look like data=4 or data=4,model=2, got {text}")
    return {"data": int(found[1]), "model": int(found[2] or 1)} if found else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished(Platform):
    """Options of commands that use a finished run."""

    preset: str = "default"
    """Preset of the run, read from runs/EXPERIMENT/PRESET unless workdir is given."""
    workdir: Path | None = None
    """The run's folder."""
