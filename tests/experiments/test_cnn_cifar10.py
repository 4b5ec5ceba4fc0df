"""The classifier as a person runs it: end to end, continued, misused."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
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


@pytest.mark.parametrize("size", [32, 28, 19])
def test_what_pooling_leaves_over_changes_nothing(key, size):
    """Flax's layers on the whole image, biases before ReLU and pooling: the same logits, and the same gradients."""

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            for layer, features in enumerate((5, 6, 7)):
                x = nn.max_pool(x, (2, 2), strides=(2, 2)) if layer else x
                x = nn.relu(nn.Conv(features, (3, 3), padding="VALID", name=f"conv_{layer}")(x))
            x = nn.relu(nn.Dense(8, name="dense_0")(x.reshape(len(x), -1)))
            return nn.Dense(4, name="dense_1")(x)

    ours, images = ArticleCNN((5, 6, 7), 8, 4), jax.random.normal(key, (3, size, size, 3))
    params = jax.tree.map(lambda x: x + 0.1, ours.init(key, images))
    networks = (ours, Plain())
    both = [jax.value_and_grad(lambda p, x, net=net: (net.apply(p, x) ** 2).sum(), (0, 1)) for net in networks]
    # Sums of about a hundred terms in another order.
    chex.assert_trees_all_close(*(jax.jit(f)(params, images) for f in both), rtol=1e-4, atol=1e-4)


def test_the_network_is_the_articles(key):
    """As many parameters as Keras counts, and features and head make the whole."""
    network, images = ArticleCNN(), jnp.linspace(0, 1, 2 * 32 * 32 * 3).reshape(2, 32, 32, 3)
    variables = network.init(key, images)
    assert sum(x.size for x in jax.tree.leaves(variables)) == 122_570
    features = network.apply(variables, images, method="features")
    assert features.shape == (2, 4, 4, 64)
    whole, parts = network.apply(variables, images), network.apply(variables, features, method="head")
    np.testing.assert_array_equal(whole, parts)
