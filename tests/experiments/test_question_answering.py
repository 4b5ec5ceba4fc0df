"""Questions about stories as a person asks them: learned, continued, drawn, misused."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from jaxai.data.qa import load_stories, write_babi
from tests.experiments.commands import SCRIPTS, load, refusal, run, run_command, start, start_command

SCRIPT = SCRIPTS / "question_answering.py"
SMALL = "--count", "40", "--test-count", "10", "--tasks", "1", "5"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A debug run on two tasks that was stopped and continued, and what its last start said."""
    workdir = tmp_path_factory.mktemp("questions") / "run"
    for steps in ("10", "20"):
        result = run(SCRIPT, workdir, "--steps", steps, *SMALL)
        assert result.returncode == 0, result.stderr
    return workdir, result


@pytest.mark.slow
def test_debug_run(finished):
    workdir, result = finished
    assert "going on from step 10" in result.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert list(summary["test_errors"]) == ["1 one-supporting-fact", "5 counting"]
    assert summary["mean_error"] == pytest.approx(np.mean(list(summary["test_errors"].values())))
    assert f"mean error {100 * summary['mean_error']:.2f} %" in result.stdout
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert [line["step"] for line in lines if "validation_error" in line] == [0, 10, 20]
    assert " > " in (workdir / "samples" / "answers.txt").read_text()
    with Image.open(workdir / "attention.png") as picture:
        assert min(picture.size) > 80


@pytest.mark.slow
def test_explain(finished):
    workdir, _ = finished
    result = run_command(SCRIPT, workdir, "explain", "--workdir", str(workdir), "--task", "1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(workdir / "attention.png")
    assert "where is" in result.stdout.splitlines()[-2]


@pytest.mark.slow
def test_babi_files(tmp_path, capsys):
    """Our own stories in bAbI's format, as its files are read."""
    stories = load_stories("train", 30, 0)
    for split in ("train", "test"):
        write_babi(stories, tmp_path / "babi", split)
    arguments = "--data-dir", str(tmp_path / "babi"), "--tasks", "1", "2", "--steps", "2"
    result = run(SCRIPT, tmp_path / "run", *arguments)
    assert result.returncode == 0, result.stderr
    assert "tasks above 5 %" in result.stdout
    assert "MemN2N   0.0" in result.stdout
    assert "MemN2N  11.4" in result.stdout
    experiment, line = load(SCRIPT), ("--workdir", str(tmp_path / "run"))
    explain = partial(start_command, experiment.explain, experiment.Explain, *line)
    assert "give --data-dir" in refusal(capsys, explain)
    start_command(experiment.explain, experiment.Explain, *line, "--data-dir", str(tmp_path / "babi"), "--task", "1")
    assert "attention.png" in capsys.readouterr().out


def test_published_errors_have_the_published_mean():
    published = load(SCRIPT).MEMN2N
    assert np.mean(published) == pytest.approx(12.4, abs=0.01)
    assert sum(error > 5 for error in published) == 11


@pytest.mark.slow
def test_bad_input_is_one_line_and_exit_code_2(finished, tmp_path, capsys):
    (workdir, _), experiment = finished, load(SCRIPT)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "qa1_single-supporting-fact_train.txt").write_text("Mary went home.\n")
    (tmp_path / "broken" / "qa1_single-supporting-fact_test.txt").write_text("1 Mary went home.\n")
    for arguments, word in [
        (["--tasks", "12"], "task 12: there are 1 to 11"),
        (["--data-dir", str(tmp_path / "none")], "none"),
        (["--data-dir", str(tmp_path / "broken"), "--tasks", "1"], "qa1_single-supporting-fact_train.txt"),
        (["--batch-size", "0"], "--batch-size"),
        (["--count", "0"], "--count"),
        (["--slow", "walking", "--count", "10"], "task walking: the tasks are one-supporting-fact, two"),
        (["--times", "0"], "--times"),
        (["--preset", "babi"], "needs --data-dir"),
    ]:
        assert word in refusal(capsys, partial(start, experiment, tmp_path / "run", *arguments))
        assert not (tmp_path / "run").exists()
    everything = tmp_path / "everything"  # as a run that learned all tasks
    shutil.copytree(workdir, everything)
    config = json.loads((workdir / "config.json").read_text())
    (everything / "config.json").write_text(json.dumps(config | {"tasks": []}))
    for arguments, word in [
        (["--workdir", str(everything), "--task", "12"], "task 12: there are 1 to 11"),
        (["--workdir", str(tmp_path / "nowhere")], "holds no finished run"),
        (["--workdir", str(workdir), "--task", "2"], "--task 2: this run learned 1, 5"),
    ]:
        assert word in refusal(capsys, partial(start_command, experiment.explain, experiment.Explain, *arguments))
