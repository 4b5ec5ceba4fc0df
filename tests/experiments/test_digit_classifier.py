"""The classifier's training script: it runs, goes on, and writes what the package can load."""

import json
from functools import partial

import pytest
import safetensors.numpy

from jaxai.metrics import digits
from tests.experiments.commands import SCRIPTS, load, refusal, run, start


@pytest.mark.slow
def test_debug_run_writes_the_parameters_and_goes_on(tmp_path):
    script, workdir = SCRIPTS / "digit_classifier.py", tmp_path / "run"
    for steps in ("10", "20"):
        result = run(script, workdir, "--steps", steps)
        assert result.returncode == 0, result.stderr
    assert "going on from step 10" in result.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 20
    assert summary["sha256"] in result.stdout
    written = safetensors.numpy.load_file(workdir / "digits.safetensors")
    shipped = digits.load()
    assert {name: array.shape for name, array in written.items()} == {n: a.shape for n, a in shipped.items()}


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    experiment = load(SCRIPTS / "digit_classifier.py")
    for arguments, word in [
        (["--checkpoint-every", "-1"], "--checkpoint-every"),
        (["--held-out", "4500"], "--held-out"),
    ]:
        assert word in refusal(capsys, partial(start, experiment, tmp_path / "run", *arguments))
        assert not (tmp_path / "run").exists()
