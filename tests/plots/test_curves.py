"""Curves of metric files, also of broken ones."""

import json

import pytest
from PIL import Image

from jaxai import plots


def write_metrics(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))


def test_curves_from_incomplete_records(tmp_path):
    lines = [{"step": 1, "a": 1.0}, {"step": 2, "a": 0.5, "b": 3}, {"step": 3, "a": float("nan")}, '{"step": 4, "a']
    write_metrics(tmp_path / "metrics.jsonl", lines)
    plots.plot_curves(tmp_path / "c.png", tmp_path / "metrics.jsonl", [["a", "missing"], ["b"], ["missing"]])
    with Image.open(tmp_path / "c.png") as image:
        assert image.size[0] > 300
    with pytest.raises(ValueError, match="no values of missing"):
        plots.plot_curves(tmp_path / "c.png", tmp_path / "metrics.jsonl", [["missing"]])
    with pytest.raises(FileNotFoundError):
        plots.plot_curves(tmp_path / "c.png", tmp_path / "absent.jsonl", [["a"]])
