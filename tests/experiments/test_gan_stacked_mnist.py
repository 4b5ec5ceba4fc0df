"""The 1000-mode benchmark as a person starts it: a debug run that goes on, and misuse."""

import json
from functools import partial

import pytest
from PIL import Image

from jaxai.gan import generator_commands
from tests.experiments.commands import SCRIPTS, load, refusal, run, start, start_command, watched

SCRIPT = SCRIPTS / "gan_stacked_mnist.py"


@pytest.mark.slow
def test_debug_run_goes_on(tmp_path):
    workdir = tmp_path / "run"
    for steps in ("20", "40"):
        result = run(SCRIPT, workdir, "--steps", steps, "--fixed", "500")
        assert result.returncode == 0, result.stderr
    assert "going on from step 20" in result.stderr
    assert "of 1000" in result.stdout
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["stacks"] == 500
    assert summary["real_kl"] > 0.5  # 500 stacks are at most half of the modes
    assert len(summary["modes"]) == len(summary["kl"]) == 1
    assert watched(workdir, 20)
    with Image.open(workdir / "samples.png") as picture:
        assert picture.mode == "RGB"
    experiment = load(SCRIPT)
    made = generator_commands(experiment.NAME, experiment.Config, experiment.trained_generator)
    for name, arguments in {"sample": ["--count", "3"], "invert": ["--count", "2", "--steps", "3"]}.items():
        start_command(*made[name], "--workdir", str(workdir), *arguments)
    with Image.open(workdir / "images_0" / "00002.png") as picture:
        assert (picture.size, picture.mode) == ((28, 28), "RGB")
    assert (workdir / "inverted.png").exists()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    experiment = load(SCRIPT)
    for arguments, word in [
        (["--fixed", "-1"], "--fixed"),
        (["--widths", "8", "8", "8"], "--widths must be one or two"),
        (["--ema-half-life", "-1"], "--ema-half-life"),
        (["--latent-seeds", "0"], "--latent-seeds"),
        (["--optimizer.warmup", "9000"], "warmup"),
        (["--data-dir", str(tmp_path / "none")], "none"),
    ]:
        assert word in refusal(capsys, partial(start, experiment, tmp_path / "run", *arguments))
    assert not (tmp_path / "run").exists()
