"""Evaluations during GAN training, final pictures and scores, and the report on standard output."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxai import plots
from jaxai.gan.collapse import CollapseConfig, CollapseMonitor
from jaxai.gan.latents import walk
from jaxai.gan.sampler import Sampler
from jaxai.gan.state import GanState
from jaxai.metrics.digits import features_and_labels
from jaxai.metrics.diversity import COMPARED
from jaxai.metrics.generation import evaluate_digits, evaluation_size, frechet_distance
from jaxai.run.folder import Run
from jaxai.typing import Pixels

Evaluate = Callable[[Run, int, GanState], dict[str, float]]
"""(run, step, state) -> metrics."""


def reference_images(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Up to 1,000 real images, uint8 [n, height, width, C], to compare samples with: test images first."""
    return np.concatenate([test, train[:1000]])[:1000]


def sample_evaluation(config: CollapseConfig, sampler: Sampler, real: Pixels) -> Evaluate:
    """An evaluation that writes a grid of samples from fixed latents to samples/ and monitors them for collapse."""
    monitor = CollapseMonitor(config, np.asarray(real))

    def evaluate(run: Run, step: int, state: GanState) -> dict[str, float]:
        images = plots.to_pixels(sampler(state, COMPARED))
        save_grid(run, step, images)
        return monitor.act(run, step, monitor.measure(images))

    return evaluate


def digit_evaluation(config: CollapseConfig, sampler: Sampler, real: Pixels) -> Evaluate:
    """`sample_evaluation` with digit labels for the monitor, and an MNIST-FD from ``len(real)`` samples."""
    real_features, real_labels = features_and_labels(real)
    monitor = CollapseMonitor(config, np.asarray(real), real_labels)

    def evaluate(run: Run, step: int, state: GanState) -> dict[str, float]:
        images = plots.to_pixels(sampler(state, len(real)))
        save_grid(run, step, images)
        features, labels = features_and_labels(images)
        found = monitor.act(run, step, monitor.measure(images, labels))
        return {"quick_mnist_fd": frechet_distance(real_features, features)} | found

    return evaluate


def digit_scores(sampler: Sampler, state: GanState, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """`evaluate_digits` of `evaluation_size` samples, and the class-conditional accuracy of a conditional generator."""
    samples = plots.to_pixels(sampler(state, evaluation_size(train, test)))
    scores: dict[str, Any] = evaluate_digits(samples, train, test)
    if sampler.classes:
        _, labels = features_and_labels(samples)
        scores["right_class"] = float((labels == np.arange(len(labels)) % sampler.classes).mean())
    return scores


def save_grid(run: Run, step: int, images: np.ndarray) -> None:
    """Write the first 100 images of a step as a grid with 10 columns."""
    plots.save_png(run.samples / f"step_{step:06d}.png", plots.grid(images[:100], columns=10))


def save_pictures(run: Run, sampler: Sampler, state: GanState, curves: Sequence[Sequence[str]]) -> None:
    """Write samples.png, training.gif (the grids in samples/), interpolation.png and curves.png."""
    plots.save_png(run.folder / "samples.png", plots.grid(sampler(state, 100), columns=10))
    # save_png doubles every pixel; undoing that makes the animation a quarter of the size
    frames = [np.asarray(Image.open(path))[::2, ::2] for path in sorted(run.samples.glob("step_*.png"))]
    plots.save_gif(run.folder / "training.gif", frames, milliseconds=200, scale=1)
    latents = walk(sampler.latents(20, purpose=2)[:11], steps=10)
    images = sampler.from_latents(state, latents, np.repeat(np.arange(10), 10))
    plots.save_png(run.folder / "interpolation.png", plots.grid(images, columns=10))
    plots.plot_curves(run.folder / "curves.png", run.metrics, curves)


def print_report(run: Run, summary: dict[str, Any]) -> None:
    """Print the paths of the pictures, the scores and the times."""
    print(f"\npictures     {run.folder}/samples.png  training.gif  interpolation.png  curves.png")
    if "mnist_fd" in summary:
        counts = "  ".join(f"{digit}: {count}" for digit, count in enumerate(summary["histogram"]))
        print(
            f"""\
histogram    {counts}   KL {summary["histogram_kl"]:.4f}
MNIST-FD     {summary["mnist_fd"]:.2f}   real against real {summary["mnist_fd_floor"]:.2f}
precision    {summary["precision"]:.3f}   recall {summary["recall"]:.3f}   density {summary["density"]:.3f}
coverage     {summary["coverage"]:.3f}   real against real {summary["coverage_floor"]:.3f}
near copies  {summary["near_copies"]:.2%} of the samples   real against real {summary["near_copies_floor"]:.2%}
             each figure from {summary["samples"]:,} samples and equally many real images"""
        )
    if "right_class" in summary:
        print(f"labels       {summary['right_class']:.1%} of the samples are of the requested class")
    print(
        f"training     {summary['images_seen']:,} images, {summary['train_seconds']:.0f} s; compilation "
        f"{summary['compile_seconds']:.0f} s"
    )
