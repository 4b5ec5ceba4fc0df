"""The command line: presets, validation, platforms; messages that say what to change."""

import dataclasses
import os
import subprocess
import sys

import pytest

from jaxai import cli
from jaxai.config import Common, Finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    width: int = 4


PRESETS = {"default": Config(), "wide": Config(width=64, steps=7)}


def parse(*arguments: str) -> Config:
    return cli.parse(PRESETS, "A test.", arguments)


def test_options_change_single_values_of_a_preset():
    assert parse() == Config()
    assert parse("--preset", "wide") == Config(preset="wide", width=64, steps=7)
    assert parse("--preset=wide", "--steps", "9").steps == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "wdie"], "--preset wdie is unknown: did you mean wide"),
        (["--preset", "zzz"], "--preset zzz is unknown: there are default, wide"),
        (["--preset"], "--preset  is unknown"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--devices", "-1"], "--devices must be at least 0, got -1"),
        (["--seed", "-5"], "--seed must be at least 0, got -5"),
        (["--nonsense", "1"], "Unrecognized options: --nonsense"),
        (["--steps", "many"], "--steps: invalid literal .* 'many'"),
    ],
)
def test_bad_values_are_named_with_the_fix(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(*arguments)


def run_main(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command whose main has this body, in a process of its own."""
    source = f"""
import jax
def main(config):
    {body}
cli.run(main, {{"default": Common()}}, "A test.")
"""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_platform_that_is_not_there_names_the_extras():
    result = run_main("pass", "--platform", "gpu")
    if result.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --platform gpu")
    assert ".[cuda12]" in line
    assert ".[cuda13]" in line


def test_devices_split_the_cpu():
    result = run_main("print(jax.device_count())", "--platform", "cpu", "--devices", "3")
    assert (result.returncode, result.stdout) == (0, "3\n"), result.stderr


def test_a_command_on_a_finished_run_names_the_nearest_preset(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x.py", "show", "--preset", "wdie"])
    with pytest.raises(SystemExit) as stop:
        cli.run(print, PRESETS, "A test.", commands={"show": (print, Finished)})
    assert stop.value.code == 2
    assert "--preset wdie is unknown: did you mean wide? there are default, wide" in capsys.readouterr().err


def test_interrupt_says_how_to_go_on():
    result = run_main("raise KeyboardInterrupt")
    assert result.returncode == 130
    assert "goes on from the last checkpoint" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("body", ["jax.jit(lambda x: jax.numpy.split(x, 3))(jax.numpy.ones(4))"])
def test_bug_inside_a_library_keeps_its_traceback(body):
    result = run_main(body)
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_tensorboard_without_the_extra_names_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--tensorboard needs the extra: .*tensorboard"):
        Config(tensorboard=True)


def test_fields_below_their_least_value_are_named():
    with pytest.raises(ValueError, match="--width must be at least 5, got 4"):
        Config(seed=5).check_at_least(5, "seed", "width")
