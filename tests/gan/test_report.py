"""Evaluations during GAN training, final pictures, and the printed report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxai.data.embedded import mnist
from jaxai.errors import Stopped
from jaxai.gan import report
from jaxai.gan.collapse import CollapseConfig
from jaxai.gan.sampler import Sampler
from jaxai.gan.state import GanState
from jaxai.run.folder import Run
from jaxai.train.keys import Keys

REAL = np.random.default_rng(0).integers(0, 256, (500, 28, 28, 1), np.uint8)


reference_images = report.reference_images


class Generator(nn.Module):
    """Noise as images; ``spread`` 0 makes one image alone."""

    @nn.compact
    def __call__(self, latents, labels=None):
        spread = self.param("spread", nn.initializers.ones, (1, 1))
        return (spread * latents).reshape(-1, 28, 28, 1)


def state(spread: float = 1.0) -> GanState:
    params = {"spread": jnp.full((1, 1), spread)}
    return GanState(jnp.int32(0), params, {}, None, (), (), jax.random.key(0))


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(Generator(), 784, Keys(0))


def size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_reference_images_are_test_images_first():
    train, test = (np.full((n, 1, 1, 1), n % 256, np.uint8) for n in (1500, 400))
    images = reference_images(train, test)
    assert images.shape == (1000, 1, 1, 1)
    np.testing.assert_array_equal(images[:400], test)
    np.testing.assert_array_equal(images[400:], train[:600])
    assert len(reference_images(train[:100], test)) == 500


def test_an_evaluation_draws_a_grid_and_measures_diversity(tmp_path, sampler):
    run = Run(tmp_path)
    evaluate = report.sample_evaluation(CollapseConfig(), sampler, REAL)
    found = evaluate(run, 250, state())
    assert found.keys() == {"relative_distance"}
    assert 0.5 < found["relative_distance"] < 2
    assert size(tmp_path / "samples" / "step_000250.png") == (2 * (10 * 29 - 1),) * 2
    assert evaluate(run, 500, state()) == found  # always the same latents


def test_an_evaluation_acts_on_a_collapse(tmp_path, sampler):
    config = CollapseConfig(on_collapse="stop", collapse_after=100)
    evaluate = report.sample_evaluation(config, sampler, REAL)
    assert evaluate(Run(tmp_path), 99, state(0.0))["relative_distance"] < 0.01
    with pytest.raises(Stopped, match=r"step 100: the generator has collapsed: its samples lie 0\.00 as far apart"):
        evaluate(Run(tmp_path), 100, state(0.0))
    assert (tmp_path / "samples" / "step_000100.png").exists()


def test_an_evaluation_of_digits_adds_their_distance_and_classes(tmp_path, sampler):
    digits = mnist("train")[0][:500]
    found = report.digit_evaluation(CollapseConfig(), sampler, digits)(Run(tmp_path), 0, state())
    assert found.keys() == {"quick_mnist_fd", "relative_distance", "relative_classes"}
    assert found["quick_mnist_fd"] > 10  # noise is no digit
    assert found["relative_classes"] < 1


def test_a_perfect_generator_of_digits_has_no_distance(tmp_path):
    digits = mnist("train")[0][:500]

    class Copies(Sampler):
        classes = 0

        def __init__(self) -> None: ...

        def __call__(self, state, count):
            return digits[:count] / np.float32(127.5) - 1

    found = report.digit_evaluation(CollapseConfig(), Copies(), digits)(Run(tmp_path), 0, state())
    assert found["quick_mnist_fd"] == pytest.approx(0, abs=1e-3)
    assert found["relative_distance"] == pytest.approx(1)
    assert found["relative_classes"] == pytest.approx(1)


def test_scores_of_a_conditional_generator_say_how_many_obey():
    images, labels = mnist("train")
    in_turn = np.concatenate([np.flatnonzero(labels == c)[:, None][:150] for c in range(10)], 1).ravel()

    class Obedient(Sampler):
        def __init__(self, classes: int, shift: int) -> None:
            self.classes, self.shift = classes, shift

        def __call__(self, state, count):
            return images[np.roll(in_turn, self.shift)[:count]] / np.float32(127.5) - 1

    train, test = images[:600], images[600:1200]
    right = report.digit_scores(Obedient(10, 0), state(), train, test)
    wrong = report.digit_scores(Obedient(10, 1), state(), train, test)
    plain = report.digit_scores(Obedient(0, 0), state(), train, test)
    assert right["right_class"] > 0.95
    assert wrong["right_class"] < 0.05
    assert right.keys() - plain.keys() == {"right_class"}
    assert right["mnist_fd"] == pytest.approx(plain["mnist_fd"])


def test_final_pictures_are_made_from_the_run(tmp_path, sampler):
    run = Run(tmp_path)
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    for step in (0, 10):
        report.save_grid(run, step, np.full((120, 28, 28, 1), step, np.uint8))
    report.save_pictures(run, sampler, state(), [["loss"]])
    side = 10 * 29 - 1
    assert size(tmp_path / "samples.png") == size(tmp_path / "interpolation.png") == (2 * side, 2 * side)
    with Image.open(tmp_path / "training.gif") as animation:
        assert animation.n_frames == 2
        assert animation.size == (side, side)
    assert size(tmp_path / "curves.png")[0] > 300


SUMMARY = {"images_seen": 64_000, "train_seconds": 12.4, "compile_seconds": 3.3}
SCORES = {
    "histogram": [1, 2],
    "histogram_kl": 0.25,
    "samples": 1234,
    "mnist_fd": 3.14159,
    "mnist_fd_floor": 1.0,
    "precision": 0.5,
    "recall": 0.25,
    "density": 0.75,
    "coverage": 0.125,
    "coverage_floor": 0.9,
    "near_copies": 0.01,
    "near_copies_floor": 0.02,
}


def test_the_report_prints_pictures_and_times(tmp_path, capsys):
    report.print_report(Run(tmp_path), SUMMARY)
    said = capsys.readouterr().out
    assert f"{tmp_path}/samples.png" in said
    assert "training     64,000 images, 12 s; compilation 3 s" in said
    assert "MNIST-FD" not in said
    assert "labels" not in said


def test_the_report_prints_scores_where_there_are_some(tmp_path, capsys):
    report.print_report(Run(tmp_path), SUMMARY | SCORES | {"right_class": 0.98765})
    said = capsys.readouterr().out
    for line in (
        "histogram    0: 1  1: 2   KL 0.2500",
        "MNIST-FD     3.14   real against real 1.00",
        "precision    0.500   recall 0.250   density 0.750",
        "coverage     0.125   real against real 0.900",
        "near copies  1.00% of the samples   real against real 2.00%",
        "each figure from 1,234 samples",
        "labels       98.8% of the samples",
    ):
        assert line in said
