"""From a config dataclass to a command: presets, platform, messages for users.

An experiment declares ``class Config(cli.Common)``, ``PRESETS = {"default": Config(...), ...}``, ``main(config)``, and
ends with ``cli.run(main, PRESETS, __doc__)``.
"""

import ctypes
import dataclasses
import difflib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax

from jaxai import command

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # <malloc.h>
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

    shard_parameters: bool = False
    """Shard parameters and optimiser state over the devices as well as the batch."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints stay."""
    keep_lowest: tuple[str, ...] = ()
    """Metrics of which the checkpoint with the lowest value stays as well, such as validation_loss."""
    keep_highest: tuple[str, ...] = ()
    """Metrics of which the checkpoint with the highest value stays as well."""
    on_nonfinite: Literal["abort", "skip", "rollback"] = "abort"
    """At a NaN or an infinity: stop; leave that step out, up to nine in a row; or go back to the last checkpoint and on
    with other noise, three times. nonfinite.json tells step, batch and worst leaf."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "checkpoint_every", "keep")


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
            action, config = main, parse(presets, description, sys.argv[1:])
        start_platform(config.platform, config.devices)
        use_compilation_cache()
        action(config)

    command.show_messages()
    trains = not (sys.argv[1:] and sys.argv[1] in commands)
    advice = ": --resume auto goes on from the last checkpoint" if trains else ""
    command.guard(experiment, interrupted=f"interrupted{advice}")
