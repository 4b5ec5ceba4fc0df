"""Experiments as processes of their own: one CPU, no network, no prepared data."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jaxai import cli, experiment
from jaxai.train.keys import Keys
from tests.experiments import warm

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPTS = REPOSITORY / "experiments"


def load(script: Path) -> ModuleType:
    """A script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where tyro looks a config's source up
    spec.loader.exec_module(module)
    return module


def command(script: Path, workdir: Path, *arguments: str) -> list[str]:
    """A debug run in a folder."""
    return [sys.executable, str(script), "--preset", "debug", "--workdir", str(workdir), *arguments]


def environment(workdir: Path) -> dict[str, str]:
    """Nothing but the embedded data; XLA with the tests' options, and compiled programs kept between tests."""
    proxies = [name for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (upper, upper.lower())]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".jax_cache"),
        "TFDS_DATA_DIR": str(workdir.parent / "tfds"),
        **dict.fromkeys(proxies, "http://127.0.0.1:9"),
        "NO_PROXY": "",
        "no_proxy": "",
    }


def run(script: Path, workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The finished run."""
    return finish(command(script, workdir, *arguments), workdir)


def run_command(script: Path, workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Another command of the script, finished."""
    return finish([sys.executable, str(script), *arguments], workdir)


def finish(line: list[str], workdir: Path) -> subprocess.CompletedProcess[str]:
    """The line's script in a fork of a process that has imported the libraries."""
    return warm.run(line[1:], workdir.parent, environment(workdir))


def watched(workdir: Path, step: int) -> bool:
    """Whether the variety of a run's samples was measured after a step."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (row,) = (row for row in rows if row["step"] == step)
    return row.keys() >= {"relative_distance", "relative_classes"}


def refusal(capsys: pytest.CaptureFixture[str], action: Callable[[], None]) -> str:
    """The one line with which a command of a loaded script ends, in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.guard(action)
    assert stop.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line


def start(script: ModuleType, workdir: Path, *arguments: str) -> None:
    """A debug run of a loaded script in this process."""
    line = ["--preset", "debug", "--workdir", str(workdir), *arguments]
    train(script, cli.parse(script.PRESETS, script.__doc__, line))


def train(script: ModuleType, config: Any) -> None:
    """A run of a loaded script in this process."""
    experiment.train(script.NAME, script.build, config)


def step_and_init(trainer: Any, seed: int = 0) -> tuple[Callable, Callable]:
    """The pure functions (state, batch) -> (state, metrics) and () -> state of a trainer."""
    return trainer.step, partial(trainer.init, Keys(seed))


def start_command(action: Callable, form: type, *arguments: str) -> None:
    """Another command of a loaded script in this process."""
    action(cli.read(form, arguments))
