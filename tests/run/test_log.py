"""metrics.jsonl, the progress bar and TensorBoard events of a run."""

import json
import math
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxai.run.log import MetricsLog, Progress, keep_until
from tests.helpers import train


def test_metrics_stand_once_per_step_rounded_and_exact(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with closing(MetricsLog(path, 0)) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 1 / 3})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # a line that a kill cut off
    with closing(MetricsLog(path, 2)) as log:
        log.write(3, {"loss": 0.25})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["loss"] == 0.333333
    assert float.fromhex(lines[0]["loss_hex"]) == 1 / 3
    assert lines[2]["loss"] == 0.25


def test_keep_until_leaves_a_missing_file_alone(tmp_path):
    keep_until(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


def test_tensorboard_events_are_written(tmp_path):
    train(tmp_path / "run", 2, tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("lines", "after", "message"),
    [
        ([1, 2, 3], 5, "is damaged: the metrics after step 3 up to 5 are lost"),
        ([], 4, "is damaged: the metrics after step 0 up to 4 are lost"),
        (None, 4, "is missing: the metrics up to step 4 are lost"),
    ],
)
def test_lost_metrics_are_told(tmp_path, caplog, lines, after, message):
    path = tmp_path / "metrics.jsonl"
    if lines is not None:
        path.write_text("".join(json.dumps({"step": step}) + "\n" for step in lines))
    keep_until(path, after)
    assert message in caplog.text


@given(steps=st.lists(st.integers(0, 9), max_size=8), after=st.integers(0, 9), cut=st.integers(0, 12))
def test_kept_lines_are_whole_and_not_later(steps, after, cut, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "kept.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in steps]
    path.write_text("".join(lines) + json.dumps({"step": 0, "loss": 1.0})[:cut])
    keep_until(path, after)
    assert path.read_text() == "".join(line for line, step in zip(lines, steps, strict=True) if step <= after)


@given(value=st.floats(width=32))
def test_a_metric_comes_back_exactly_from_its_hexadecimal_form(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "exact.jsonl"
    path.unlink(missing_ok=True)
    with closing(MetricsLog(path, 0)) as log:
        log.write(1, {"loss": value})
        log.flush()
    line = json.loads(path.read_text())
    found = float.fromhex(line["loss_hex"])
    assert found == value or (math.isnan(found) and math.isnan(value))
    if math.isfinite(value):
        assert line["loss"] == pytest.approx(value, rel=1e-5)


def test_the_bar_shows_the_metrics_that_are_asked_for(capsys):
    with closing(Progress("digits", 10, 20, ["loss", "gradient_norm", "absent"])) as bar:
        bar.update(15, {"loss": 0.5, "gradient_norm": 2.0, "accuracy": 1.0})
        bar.line(15, {"loss": 0.5, "gradient_norm": 2.0, "accuracy": 1.0})
    said = capsys.readouterr().err
    assert "step 15: loss 0.5000, gradient norm 2.0000\n" in said
    assert "digits" in said
    assert "accuracy" not in said


def test_only_the_first_process_has_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("jaxai.run.log.first_process", lambda: False)
    with closing(Progress("digits", 0, 2, ["loss"])) as bar:
        bar.update(1, {"loss": 0.5})
        bar.line(1, {"loss": 0.5})
    assert capsys.readouterr().err == ""
