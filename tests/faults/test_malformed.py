"""Over two hundred malformed inputs: exit code 2, one line, no traceback, no file changed."""

import contextlib
import functools
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxai import cli
from jaxai.gan import generator_commands
from tests.experiments import commands
from tests.faults.malformed import EXPERIMENTS, Case, cases

CASES = {name: [case for case in cases() if case.experiment == name] for name in EXPERIMENTS}


def tree(folder: Path) -> dict:
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def refused(case: Case, folder: Path) -> str | None:
    """Run a case in this process; return what is wrong with its refusal, or None."""
    case.prepare(folder)
    before = tree(folder)
    arguments = [argument.replace("FOLDER", str(folder)) for argument in case.arguments]
    script, said = commands.load(commands.SCRIPTS / f"{case.experiment}.py"), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.guard(functools.partial(start, script, arguments))
            code = 0
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            return f"{error!r} was not caught"
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
    if code != 2 or len(lines) != 1 or "Traceback" in said.getvalue():
        return f"exit code {code}, {said.getvalue()}"
    if not re.search(re.escape(case.words.replace("FOLDER", str(folder))), lines[0]):
        return f"{lines[0]!r} does not say {case.words!r}"
    return None if tree(folder) == before else "files have changed"


def start(script, arguments: list[str]) -> None:
    """Do what `cli.run` does, without starting a platform: this process already has one."""
    if arguments[0] == "sample":
        action, form = generator_commands(script.NAME, script.Config, script.trained_generator)["sample"]
        action(cli.read(form, arguments[1:]))
    else:
        commands.train(script, cli.parse(script.PRESETS, script.__doc__, arguments))


def test_there_are_enough():
    assert sum(map(len, CASES.values())) >= 200


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_malformed_input_is_refused(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    check(CASES[experiment], tmp_path)


def check(cases: list[Case], tmp_path: Path) -> None:
    """Assert that each case is refused."""
    wrong = {}
    for number, case in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        if found := refused(case, folder):
            wrong[case.name] = found
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())


def all_refused(folder: Path, processes: int) -> str:
    """Run all cases in this process, and the first ``processes`` of each experiment as commands, timed."""
    os.environ["TFDS_DATA_DIR"] = str(folder / "none")
    slowest, started = 0.0, 0
    for name, group in CASES.items():
        (folder / name).mkdir()
        check(group, folder / name)
        for case in group[:processes]:
            began = time.monotonic()
            line = [sys.executable, str(commands.SCRIPTS / f"{name}.py"), *case.arguments]
            result = subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False)
            slowest, started = max(slowest, time.monotonic() - began), started + 1
            assert (result.returncode, "Traceback" in result.stderr) == (2, False), result.stderr
    count = sum(map(len, CASES.values()))
    return f"{count} of {count}; of these {started} in separate processes, the slowest within {slowest:.1f} s"
