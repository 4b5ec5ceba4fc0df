"""The command line: presets, options, interrupts; messages that say what to change."""

import dataclasses
import sys

import pytest

from jaxai import cli
from jaxai.config import Common, Finished
from tests.helpers import run_main


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
