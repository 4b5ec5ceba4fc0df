"""The template of docs/guides/own_experiment.md: short, and it runs and continues as the guide says."""

import json

from tests.experiments.commands import REPOSITORY, run

TEMPLATE = REPOSITORY / "docs" / "guides" / "own_experiment.py"


def test_the_template_is_short():
    assert len(TEMPLATE.read_text().splitlines()) <= 60


def test_the_template_runs_and_continues(tmp_path):
    for steps in ("40", "80"):
        result = run(TEMPLATE, tmp_path / "run", "--steps", steps)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("test accuracy ")
    assert "going on from step 40" in result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 80
    assert summary["accuracy"] > 0.5  # chance is 0.1
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"model.safetensors", "README.md", "config.json"}
