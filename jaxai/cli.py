"""From a config dataclass to a command: presets, platform, messages for users.

An experiment declares ``class Config(cli.Common)``, ``PRESETS = {"default": Config(...), ...}``, ``main(config)``, and
ends with ``cli.run(main, PRESETS, __doc__)``.
"""

import contextlib
import ctypes
import dataclasses
import difflib
import importlib.util
import ipaddress
import itertools
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import jax

from jaxai import command

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # <malloc.h>
HEARTBEAT, JOIN = 15, 120  # seconds until a silent process is lost; until all must have come
PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
INSTALL = {
    "gpu": "install JAX for it with pip install -e '.[cuda12]' or pip install -e '.[cuda13]'",
    "tpu": "install JAX for it with pip install -e '.[tpu]'",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Platform:
    """Where to run."""

    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to run; auto takes what JAX finds."""
    devices: int = 0
    """How many devices to use; 0 means all of them. On a CPU, N > 0 splits it into N devices."""

    def __post_init__(self) -> None:
        self.check_at_least(0, "devices")

    def check_at_least(self, least: float, *names: str) -> None:
        """Raise ValueError for the first of these fields that is less than ``least``, or NaN."""
        for name in names:
            if not getattr(self, name) >= least:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be at least {least}, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common(Platform):
    """What every experiment takes."""

    preset: str = "default"
    """Which set of values to start from; the other options change single ones."""
    steps: int = 1000
    """When to stop. A finished run goes on with a larger number; schedules do not depend on it."""
    seed: int = 0
    """Of parameters, noise and the order of the data."""
    workdir: Path | None = None
    """The run's folder; runs/EXPERIMENT/PRESET by default."""
    data_dir: Path | None = None
    """A folder with official data files or a prepared tensorflow-datasets folder."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on with the run in the folder; never moves it aside, says so, and starts anew."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra: tensorboard)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "steps")
        self.check_at_least(0, "seed")
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError("--tensorboard needs the extra: pip install -e '.[tensorboard]'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Common):
    """What every experiment takes that trains in steps."""

    coordinator: str = ""
    """Join other processes: HOST:PORT of the first, or auto under SLURM, Open MPI, Kubernetes; --devices is of each."""
    num_processes: int = 0
    """How many there are, unless auto tells."""
    process_id: int = -1
    """Which one this is, 0 to num_processes - 1, unless auto tells."""
    watchdog: float = 600.0
    """With several processes: after so many seconds in a step, print where every thread stands and end; 0: wait."""
    mesh: str = ""
    """How to split batch and parameters over the devices: data=4,model=2; all of them for the batch by default."""
    shard_parameters: bool = False
    """Shard parameters and optimiser state over the devices as well as the batch."""
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints; 0: none by time. The last step always has one."""
    checkpoint_every: int = 0
    """Also a checkpoint every so many steps; 0: by time alone."""
    keep: int = 2
    """How many of the newest checkpoints stay."""
    keep_lowest: tuple[str, ...] = ()
    """Metrics of which the checkpoint with the lowest value stays as well, such as validation_loss; there is then a
    checkpoint at each evaluation."""
    keep_highest: tuple[str, ...] = ()
    """The same with the highest value."""
    on_nonfinite: Literal["abort", "skip", "rollback"] = "abort"
    """At a NaN or an infinity: stop; leave that step out, up to nine in a row; or go back to the last checkpoint and on
    with other noise, three times. nonfinite.json tells step, batch and worst leaf."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "keep")
        self.check_at_least(0, "checkpoint_every", "checkpoint_seconds", "watchdog")
        if self.watchdog > 1e6:
            raise ValueError(f"--watchdog must be at most 1e6 seconds, got {self.watchdog}; 0 is none")
        axes = mesh_axes(self.mesh)
        if self.devices and self.mesh and not self.coordinator and self.devices != math.prod(axes.values()):
            raise ValueError(f"--mesh {self.mesh} is not of --devices {self.devices}: leave one of them out")
        if self.coordinator not in ("", "auto"):
            host, _, port = self.coordinator.rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 2**16):
                raise ValueError(f"--coordinator must be HOST:PORT or auto, got {self.coordinator}")
            if not 0 <= self.process_id < self.num_processes:
                raise ValueError(
                    "--coordinator HOST:PORT wants --num-processes N and --process-id of 0 to N - 1, got "
                    f"{self.num_processes} and {self.process_id}"
                )
        elif self.num_processes or self.process_id >= 0:
            raise ValueError("--num-processes and --process-id want --coordinator HOST:PORT")

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
        raise ValueError(f"--mesh must look like data=4 or data=4,model=2, got {text}")
    return {"data": int(found[1]), "model": int(found[2] or 1)} if found else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished(Platform):
    """Which finished run a command takes up."""

    preset: str = "default"
    """Whose run: that in runs/EXPERIMENT/PRESET, unless there is a workdir."""
    workdir: Path | None = None
    """The run's folder."""


def parse[ConfigT: Common](
    presets: Mapping[str, ConfigT], description: str | None, arguments: Sequence[str]
) -> ConfigT:
    """The config that the arguments ask for: ``--preset``, else the first one, and the other options on top of it.

    Raises ValueError for an unknown preset (naming the nearest one), an unknown option, or a bad value.
    """
    name = preset_name(arguments, next(iter(presets)))
    check_preset(name, presets)
    default = dataclasses.replace(presets[name], preset=name)
    return command.read(type(default), arguments, default=default, description=description)


def preset_name(arguments: Sequence[str], first: str) -> str:
    """The value of the last ``--preset``, or the first preset there is."""
    name = first
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == "--preset":
            name = following
        elif argument.startswith("--preset="):
            name = argument.removeprefix("--preset=")
    return name


def check_preset(name: str, presets: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown preset, naming the nearest one."""
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"--preset {name} is unknown: {hint}there are {', '.join(presets)}")


def start_platform(platform: str, devices: int) -> None:
    """Choose JAX's platform and number of CPU devices. Call before anything touches a device.

    Raises ValueError where the platform is not there, naming the extra to install, or has too few devices.
    """
    jax.config.update("jax_traceback_filtering", "off")  # else an error inside JAX looks as if we had raised it
    if platform in ("auto", "cpu"):
        keep_freed_memory()
    if devices > 1:
        # Collectives starve with fewer threads than devices; with many more than cores a step takes half as long again.
        os.environ.setdefault("PJRT_NPROC", str(max(2 * devices, os.cpu_count() or 1)))
    if platform != "auto":
        jax.config.update("jax_platforms", PLATFORMS[platform])
    if devices > 0:
        jax.config.update("jax_num_cpu_devices", devices)
    try:
        found = jax.device_count()
    except (RuntimeError, AssertionError) as error:  # jax 0.12 asserts where a platform has no plugin at all
        if platform not in INSTALL:
            raise
        message = f"--platform {platform}: JAX finds none here; {INSTALL[platform]}, or use --platform cpu"
        raise ValueError(f"{message} ({command.one_line(error)})" if str(error) else message) from error
    if devices > found:
        raise ValueError(f"--devices {devices}: JAX finds only {found}; ask for at most {found}")


@contextlib.contextmanager
def joined(coordinator: str, count: int, index: int) -> Iterator[None]:
    """Be one of several processes, where there is a coordinator. Enter before anything touches a device.

    A process that fails in a way that the others may not share says so and ends at once; they notice within HEARTBEAT
    seconds. At the end each waits for all. Raises ValueError where the others don't come, or ``auto`` finds no cluster.
    """
    if not coordinator:
        yield
        return
    jax.config.update("jax_enable_preemption_service", False)  # signals are handled by the loop
    options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT, "initialization_timeout": JOIN}
    options["shutdown_timeout_seconds"] = 24 * 3600  # others may still draw and score
    if coordinator != "auto":
        host = coordinator.rpartition(":")[0].strip("[]")
        os.environ.update({"no_grpc_proxy": host})  # else joining hangs where there is a proxy
        jax.config.update("jax_check_proxy_envs", False)
        options |= {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
        options |= {"cluster_detection_method": "deactivate"}
        if is_loopback(host):
            options["coordinator_bind_address"] = coordinator
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--coordinator {coordinator}: {command.one_line(error)}") from error
    try:
        yield
    except (command.Interrupted, FloatingPointError):
        raise  # all processes come to these at the same step
    except BaseException as error:
        if (end := command.ending(error, "interrupted")) is None:
            traceback.print_exc()
        code, told = end or (1, "stopped: this process failed, or lost another")
        print(f"{told} (process {jax.process_index()})", file=sys.stderr, flush=True)
        if jax.process_index() == 0:
            time.sleep(2)  # without its coordinator another process can't tell what it has to
        os._exit(code)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of handing it back to the kernel. Call before JAX starts.

    XLA's CPU client allocates outputs and temporaries of every step anew; by default glibc maps and unmaps blocks above
    32 MiB each time, and touching 128 MiB of fresh pages takes some 16 ms (adding 10 M floats: 13.7 ms, with this
    1.5). Freed memory stays with the process. Does nothing where there is no glibc.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for parameter, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxai" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def run[ConfigT: Common](
    main: Callable[[ConfigT], None],
    presets: Mapping[str, ConfigT],
    description: str | None,
    commands: Mapping[str, tuple[Callable[[Any], None], type[Platform]]] = MappingProxyType({}),
) -> None:
    """Parse the command line, start the platform, run ``main``; a user's error is one line and exit code 2.

    ``commands`` are what else there is to do, by the name that is the first argument then: a function, and the
    dataclass of its options.
    """

    def experiment() -> None:
        name, *arguments = sys.argv[1:] or [""]
        if name in commands:
            action, form = commands[name]
            config = command.read(form, arguments, description=form.__doc__)
            if issubclass(form, Finished):
                check_preset(config.preset, presets)
        else:
            config = parse(presets, description, sys.argv[1:])
            action = cast(Callable[[Any], None], main)
        use_compilation_cache()
        if not isinstance(config, Training):
            start_platform(config.platform, config.devices)
            action(config)
            return
        with joined(config.coordinator, config.num_processes, config.process_id):
            start_platform(config.platform, config.devices_here)
            if jax.process_index():
                logging.getLogger("jaxai").setLevel(logging.WARNING)  # the first tells what all do
            action(config)

    command.show_messages()
    trains = not (sys.argv[1:] and sys.argv[1] in commands)
    advice = ": --resume auto goes on from the last checkpoint" if trains else ""
    command.guard(experiment, interrupted=f"interrupted{advice}")
