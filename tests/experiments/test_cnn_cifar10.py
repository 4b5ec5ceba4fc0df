"""The classifier as a person runs it: end to end, continued, misused."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxai.data import ImageDataset
from jaxai.data.pipeline import batches
from jaxai.distributed.mesh import make_mesh
from jaxai.nn import cnn
from jaxai.nn.cnn import ArticleCNN
from jaxai.run.folder import Run
from jaxai.train.loop import fit
from tests.experiments.commands import SCRIPTS, load, run, step_and_init

SCRIPT = SCRIPTS / "cnn_cifar10.py"
PICTURES = ("roc.png", "confusion.png", "mistakes.png", "filters.png", "explanations.png")


@pytest.mark.slow
def test_debug_run_makes_everything_and_goes_on(tmp_path):
    workdir = tmp_path / "run"
    for steps, steps_per_call in (("20", "1"), ("40", "8")):
        result = run(SCRIPT, workdir, "--steps", steps, "--steps-per-call", steps_per_call)
        assert result.returncode == 0, result.stderr
    assert "going on from step 20" in result.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 40
    assert result.stdout.count("Test accuracy: ") == 1
    assert result.stdout.startswith(f"Test accuracy: {summary['test_accuracy']:.4f}\n")
    assert summary["test"]["examples"] == 500
    assert np.trace(summary["test"]["confusion"]) / 500 == summary["test_accuracy"] > 0.5
    for name in PICTURES:
        with Image.open(workdir / name) as picture:
            assert min(picture.size) > 50
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    again = run(SCRIPT, workdir)
    assert "this run is finished" in again.stderr
    assert again.stdout == result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


@pytest.mark.slow
def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    for arguments, word in [
        (["--batch-size", "0"], "--batch-size"),
        (["--dataset", "cifar10", "--data-dir", str(tmp_path)], "data_batch_1.bin"),
        (["--preset", "artikle"], "did you mean article"),
        (["--channels", "8", "8"], "--channels"),
        (["--dtype", "bfloat16"], "--recipe airbench"),
        (["--held-out", "4500"], "--held-out"),
    ]:
        result = run(SCRIPT, tmp_path / "run", *arguments)
        assert result.returncode == 2
        assert word in result.stderr.splitlines()[-1]
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [32, 28, 19])
@pytest.mark.grid(fast=1)
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
    params = jax.tree.map(lambda x: np.asarray(x) + 0.1, jax.jit(ours.init)(key, images))
    networks = (ours, Plain())
    both = [jax.value_and_grad(lambda p, x, net=net: (net.apply(p, x) ** 2).sum(), (0, 1)) for net in networks]
    # Sums of about a hundred terms in another order.
    chex.assert_trees_all_close(*(jax.jit(f)(params, images) for f in both), rtol=1e-4, atol=1e-4)


def test_the_network_is_the_articles(key):
    """As many parameters as Keras counts, and features and head make the whole."""
    network, images = ArticleCNN(), np.linspace(0, 1, 2 * 32 * 32 * 3, dtype=np.float32).reshape(2, 32, 32, 3)
    variables = jax.jit(network.init)(key, images)
    assert sum(x.size for x in jax.tree.leaves(variables)) == 122_570
    apply = jax.jit(network.apply, static_argnames="method")
    features = apply(variables, images, method="features")
    assert features.shape == (2, 4, 4, 64)
    whole, halves = apply(variables, images), apply(variables, features, method="head")
    np.testing.assert_array_equal(whole, halves)


@pytest.mark.slow
def test_airbench_through_the_command(tmp_path):
    workdir = tmp_path / "run"
    result = run(
        SCRIPT, workdir, "--recipe", "airbench", "--channels", "4", "4", "4", "--held-out", "100", "--steps", "2"
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert (summary["steps"], summary["test"]["examples"]) == (2, 100)
    assert result.stdout.startswith(f"Test accuracy: {summary['test_accuracy']:.4f}\n")
    for name in PICTURES:
        with Image.open(workdir / name) as picture:
            assert min(picture.size) > 50


def stripes(rng, count):
    """Pictures of four classes: stripes that lie or stand, in red or blue, in noise."""
    labels = rng.integers(0, 4, count).astype(np.int32)
    wave = 60 * np.sin(2 * np.pi * (np.arange(32)[None] / 8 + rng.uniform(size=(count, 1))))
    standing = np.broadcast_to(wave[:, None, :], (count, 32, 32))
    images = 128 + rng.normal(0, 30, (count, 32, 32, 3))
    images[np.arange(count), :, :, 2 * (labels % 2)] += np.where(
        labels[:, None, None] < 2, standing, standing.transpose(0, 2, 1)
    )
    images = images.clip(0, 255).astype(np.uint8)
    return ImageDataset("stripes", "train", images, labels, 4, "made up", False, "0" * 16)


@pytest.fixture(scope="module")
def experiment():
    return load(SCRIPT)


@pytest.mark.slow
def test_airbench_learns_and_goes_on(experiment, tmp_path):
    """Colour alone would give half of it, direction too."""
    rng = np.random.default_rng(0)
    data, scored = stripes(rng, 400), stripes(rng, 130)
    config = experiment.Config(
        recipe="airbench", channels=(8, 16, 16), batch_size=60, decay_steps=12, checkpoint_every=6
    )
    network, mesh = experiment.make_network(config, data), make_mesh(1, batch_size=60)
    step, init = step_and_init(experiment.trainer(config, network, data))
    for steps in (6, 12):
        until, run_of = dataclasses.replace(config, steps=steps), Run(tmp_path)
        result = fit(step, init, batches(data, 60, seed=0), until, run=run_of, mesh=mesh)
    params = jax.device_get(result.state.params)
    standard = (data.images / 255 - np.reshape(network.mean, (1, 1, 1, 3))) / np.reshape(network.std, (1, 1, 1, 3))
    kernel = cnn.whitening_kernel(jnp.asarray(standard, jnp.float32))
    np.testing.assert_allclose(jnp.abs(params["whiten"]["kernel"]), jnp.abs(kernel), atol=1e-2)
    variables = cnn.testing_variables(network, params, data.images)
    probabilities = cnn.class_probabilities(network, variables, scored.images)
    assert probabilities.shape == (130, 4)
    assert (probabilities.argmax(1) == scored.labels).mean() > 0.9
    variables = jax.device_put(variables)
    views = [w * network.apply(variables, jnp.float32(view) / 255) for w, view in cnn.six_views(scored.images[:9])]
    # float32, compiled and not
    np.testing.assert_allclose(jax.nn.softmax(np.sum(views, 0)), probabilities[:9], atol=1e-4)


def test_six_views():
    """Of an image whose values name its pixels."""
    images = np.arange(2 * 5 * 6 * 1.0).reshape(2, 5, 6, 1)
    weights, views = zip(*cnn.six_views(images), strict=True)
    assert sum(weights) == 1
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    wanted = {0.25: [images], 0.125: [padded[:, :5, :6], padded[:, 2:, 2:]]}
    for weight, crops in wanted.items():
        found = [view for w, view in zip(weights, views, strict=True) if w == weight]
        for crop in [*crops, *(crop[:, :, ::-1] for crop in crops)]:
            assert sum(np.array_equal(view, crop) for view in found) == 1
