"""Translation as a person runs it: trained, continued, asked, drawn, misused."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.experiments.commands import SCRIPTS, load, refusal, run, run_command, start, start_command

SCRIPT = SCRIPTS / "translation.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few parallel sentences as files."""
    root = tmp_path_factory.mktemp("pairs")
    numbers = ("one", "two", "three", "four", "five", "six"), ("eins", "zwei", "drei", "vier", "fünf", "sechs")
    rng = np.random.default_rng(0)
    for name, count in (("train", 200), ("val", 20), ("test", 20)):
        rows = [rng.integers(0, 6, rng.integers(2, 6)) for _ in range(count)]
        for language, words in zip(("en", "de"), numbers, strict=True):
            text = "".join(" ".join(words[i] for i in row) + "\n" for row in rows)
            (root / f"{name}.{language}").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A debug run that was stopped and continued, and what its last start said."""
    workdir = tmp_path_factory.mktemp("translation") / "run"
    small = "--vocabulary-size", "60", "--tokens-per-batch", "256", "--shapes", "2", "--data-dir", str(folder)
    for steps in ("10", "20"):
        result = run(SCRIPT, workdir, "--steps", steps, *small)
        assert result.returncode == 0, result.stderr
    return workdir, result


@pytest.mark.slow
def test_debug_run(finished):
    workdir, result = finished
    assert "going on from step 10" in result.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 20
    assert set(summary["test"]) == {"lowercase", "cased"}
    assert "case:lc|eff:no|tok:13a" in summary["test"]["lowercase"]["bleu_signature"]
    assert f"BLEU {summary['test']['lowercase']['bleu']:.2f}" in result.stdout
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    validated = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert list(validated) == [0, 10, 20]
    assert validated[20] < validated[0]
    written = (workdir / "samples" / "translations.txt").read_text().split("\n\n")
    assert len(written) == 21  # and nothing behind the last
    with Image.open(workdir / "attention.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.slow
def test_commands_of_a_finished_run(finished):
    workdir, _ = finished
    said = run_command(SCRIPT, workdir, "translate", "--workdir", str(workdir), "--sentence", "two three")
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    drawn = run_command(SCRIPT, workdir, "explain", "--workdir", str(workdir), "--sentence", "two three")
    assert drawn.stdout.splitlines() == [said.stdout.strip(), str(workdir / "attention.png")]


@pytest.mark.slow
def test_bad_input_is_one_line_and_exit_code_2(finished, folder, tmp_path, capsys):
    (workdir, _), experiment = finished, load(SCRIPT)
    unequal = tmp_path / "unequal"
    unequal.mkdir()
    for path in folder.iterdir():
        (unequal / path.name).write_bytes(path.read_bytes())
    (unequal / "train.de").write_text("eins\n")
    for arguments, word in [
        (["--data-dir", str(tmp_path / "none")], "none"),
        (["--data-dir", str(unequal)], "200 lines"),
        (["--target", "xx"], "xx"),
        (["--source", "de"], "--source and --target are both de"),
        (["--tokens-per-batch", "4"], "tokens_per_batch"),
        (["--vocabulary-size", "10"], "choose at least"),
        (["--beams", "0"], "--beams"),
        (["--label-smoothing", "1"], "--label-smoothing"),
        (["--transformer.position", "learned"], "leave it rotary"),
    ]:
        assert word in refusal(capsys, partial(start, experiment, tmp_path / "run", *arguments))
        assert not (tmp_path / "run").exists()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((workdir / name).read_bytes())
    saved = json.loads((workdir / "vocabulary.json").read_text())
    tokens = [*saved["tokens"][:-2], *saved["tokens"][:-3:-1]]  # the last two change places
    (other / "vocabulary.json").write_text(json.dumps(saved | {"tokens": tokens}))
    for place, sentence, word in [
        (tmp_path / "nowhere", "one", "holds no finished run"),
        (workdir, " ", "--sentence is empty"),
        (workdir, "\u2581", "--sentence is empty"),
        (workdir, "one 日本", "--sentence has characters that never occur in the run's training text: 日 本"),
        (other, "one", "was trained with another vocabulary"),
    ]:
        line = "--workdir", str(place), "--sentence", sentence
        said = refusal(capsys, partial(start_command, experiment.translate, experiment.Translate, *line))
        assert word in said
