"""The model card of a run."""

import dataclasses
import re

import pytest

from jaxai.config import Common
from jaxai.run.card import write_card
from jaxai.run.folder import Run, open_run

DATA = {"name": "mnist", "fingerprint": "0123456789abcdef", "embedded": True}


@pytest.fixture
def run(tmp_path) -> Run:
    return open_run("digits", Common(workdir=tmp_path / "run", preset="wide"), DATA)


def card(run: Run, summary: dict) -> str:
    write_card(run, summary)
    return (run.folder / "README.md").read_text(encoding="utf-8")


def test_a_card_names_experiment_preset_and_data(run):
    text = card(run, {})
    head, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    assert head.splitlines() == ["library_name: jaxai", "tags: [digits]"]
    assert "# digits, preset wide" in body
    assert "`python experiments/digits.py`" in body
    assert "mnist (fingerprint 0123456789abcdef)" in body


def test_figures_are_rounded_and_only_single_values_are_shown(run):
    summary = {"steps": 12000, "accuracy": 0.98765432, "loss": 1e-7, "data": "made up", "histogram": [1, 2], "no": None}
    rows = re.findall(r"^\| (\w+) \| (.*) \|$", card(run, summary), re.MULTILINE)
    assert rows == [
        ("figure", "value"),
        ("steps", "12000"),
        ("accuracy", "0.9877"),
        ("loss", "1e-07"),
        ("data", "made up"),
    ]


def test_data_without_a_fingerprint(run):
    other = dataclasses.replace(run, identity=run.identity | {"data": {"name": "points"}})
    text = card(other, {})
    assert "points: float32 arrays" in text
    assert "fingerprint" not in text


def test_a_second_card_replaces_the_first(run):
    assert "| steps | 1 |" in card(run, {"steps": 1})
    assert "| steps | 1 |" not in card(run, {"steps": 2})
