"""What GAN experiments share: pictures on the way and at the end, and the scores of digits, told."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxai import pictures
from jaxai.adversarial.latents import walk
from jaxai.metrics.digits import features_and_labels
from jaxai.metrics.generation import frechet_distance
from jaxai.train.adversarial import Draw
from jaxai.train.run import Run
from jaxai.train.state import GanState


def snapshot(done: int, state: GanState, *, run: Run, draw: Draw) -> dict[str, float]:
    """Write a grid of samples from fixed noise into the run's samples/; no metrics."""
    write_grid(done, pictures.to_pixels(draw(state, 100)), run)
    return {}


def digit_snapshot(done: int, state: GanState, *, run: Run, draw: Draw, reference: np.ndarray) -> dict[str, float]:
    """The same, and a quick MNIST-FD of as many samples as the reference has rows."""
    images = pictures.to_pixels(draw(state, len(reference)))
    write_grid(done, images[:100], run)
    return {"quick_mnist_fd": frechet_distance(reference, features_and_labels(images)[0])}


def write_grid(done: int, images: np.ndarray, run: Run) -> None:
    """The images of a step, ten in a row."""
    pictures.save_png(run.samples / f"step_{done:06d}.png", pictures.grid(images, columns=10))


def finish_pictures(run: Run, draw: Draw, state: GanState, curves: Sequence[Sequence[str]]) -> None:
    """samples.png, training.gif from the grids of samples/, interpolation.png, curves.png."""
    pictures.save_png(run.folder / "samples.png", pictures.grid(draw(state, 100), columns=10))
    # save_png doubles every pixel; an animation of single ones is a quarter of the size
    frames = [np.asarray(Image.open(path))[::2, ::2] for path in sorted(run.samples.glob("step_*.png"))]
    pictures.save_gif(run.folder / "training.gif", frames, milliseconds=200, scale=1)
    images = draw.from_latents(state, walk(draw.latents(20, purpose=2)[:11], steps=10), np.repeat(np.arange(10), 10))
    pictures.save_png(run.folder / "interpolation.png", pictures.grid(images, columns=10))
    pictures.plot_curves(run.folder / "curves.png", run.metrics, curves)


def report(run: Run, summary: dict[str, Any]) -> None:
    """Tell a person where the pictures are and what the figures say, for digits those of `evaluate_digits` too."""
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
             each figure from {summary["samples"]:,} samples and as many real images"""
        )
    if "right_class" in summary:
        print(f"labels       {summary['right_class']:.1%} of the samples are of the class that was asked for")
    print(
        f"training     {summary['images_seen']:,} images, {summary['train_seconds']:.0f} s; compilation "
        f"{summary['compile_seconds']:.0f} s"
    )
