"""The classifier as a person runs it: end to end, continued, misused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxai.nn.cnn import ArticleCNN
from tests.experiments.commands import SCRIPTS, run

SCRIPT = SCRIPTS / "cnn_cifar10.py"
PICTURES = ("roc.png", "confusion.png", "mistakes.png", "filters.png", "explanations.png")


def test_debug_run_makes_everything_and_goes_on(tmp_path):
    workdir = tmp_path / "run"
    for steps in ("20", "40"):
        result = run(SCRIPT, workdir, "--steps", steps)
        assert result.returncode == 0, result.stderr
    assert "going on from step 20" in result.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 40
    assert f"Test accuracy: {summary['test_accuracy']:.4f}" in result.stdout
    assert summary["test"]["examples"] == 500
    assert np.trace(summary["test"]["confusion"]) / 500 == summary["test_accuracy"] > 0.5
    for name in PICTURES:
        with Image.open(workdir / name) as picture:
            assert min(picture.size) > 50
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert "this run is finished" in run(SCRIPT, workdir).stderr
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    for arguments, word in [
        (["--batch-size", "0"], "--batch-size"),
        (["--dataset", "cifar10", "--data-dir", str(tmp_path)], "data_batch_1.bin"),
        (["--preset", "artikle"], "did you mean article"),
    ]:
        result = run(SCRIPT, tmp_path / "run", *arguments)
        assert result.returncode == 2
        assert word in result.stderr.splitlines()[-1]
        assert not (tmp_path / "run").exists()


def test_the_network_is_the_articles(key):
    """As many parameters as Keras counts, and features and head make the whole."""
    network, images = ArticleCNN(), jnp.linspace(0, 1, 2 * 32 * 32 * 3).reshape(2, 32, 32, 3)
    variables = network.init(key, images)
    assert sum(x.size for x in jax.tree.leaves(variables)) == 122_570
    features = network.apply(variables, images, method="features")
    assert features.shape == (2, 4, 4, 64)
    whole, parts = network.apply(variables, images), network.apply(variables, features, method="head")
    np.testing.assert_array_equal(whole, parts)
