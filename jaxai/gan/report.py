"""Snapshots during GAN training, final pictures and scores, and the report on standard output."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxai import plots
from jaxai.gan.collapse import CollapseConfig, CollapseMonitor
from jaxai.gan.latents import walk
from jaxai.gan.sampler import Sampler, sampling_params
from jaxai.gan.state import GanState
from jaxai.metrics.digits import features_and_labels
from jaxai.metrics.diversity import COMPARED
from jaxai.metrics.generation import evaluate_digits, evaluation_size, frechet_distance
from jaxai.run.folder import Run, read_config
from jaxai.run.weights import save_weights
from jaxai.typing import Pixels

Look = Callable[[int, GanState], dict[str, float]]
"""(done, state) -> metrics: what happens every so many steps."""


def reference(train: Pixels, test: Pixels) -> Pixels:
    """A thousand real images to compare samples with on the way, or as many as there are: test before train."""
    return np.concatenate([test, train[:1000]])[:1000]


def snapshot(config: CollapseConfig, run: Run, draw: Sampler, real: Pixels) -> Look:
    """Write a grid of samples from fixed noise into the run's samples/, and watch their variety."""
    watch = CollapseMonitor(config, run, np.asarray(real))

    def look(done: int, state: GanState) -> dict[str, float]:
        images = plots.to_pixels(draw(state, COMPARED))
        write_grid(done, images[:100], run)
        return watch.act(done, watch.measure(images))

    return look


def digit_snapshot(config: CollapseConfig, run: Run, draw: Sampler, real: Pixels) -> Look:
    """The same, with the digits' histogram, and a quick MNIST-FD from as many samples as ``real`` ones."""
    features_of_real, labels = features_and_labels(real)
    watch = CollapseMonitor(config, run, np.asarray(real), labels)

    def look(done: int, state: GanState) -> dict[str, float]:
        images = plots.to_pixels(draw(state, len(real)))
        write_grid(done, images[:100], run)
        features, labels = features_and_labels(images)
        found = watch.act(done, watch.measure(images, labels))
        return {"quick_mnist_fd": frechet_distance(features_of_real, features)} | found

    return look


def digit_scores(draw: Sampler, state: GanState, train: Pixels, test: Pixels) -> dict[str, Any]:
    """`evaluate_digits` of as many samples as it takes; of classes, the share that is what was asked for."""
    samples = plots.to_pixels(draw(state, evaluation_size(train, test)))
    scores: dict[str, Any] = evaluate_digits(samples, train, test)
    if draw.classes:
        _, labels = features_and_labels(samples)
        scores["right_class"] = float((labels == np.arange(len(labels)) % draw.classes).mean())
    return scores


def write_grid(done: int, images: np.ndarray, run: Run) -> None:
    """The images of a step, ten in a row."""
    plots.save_png(run.samples / f"step_{done:06d}.png", plots.grid(images, columns=10))


def finish_pictures(run: Run, draw: Sampler, state: GanState, curves: Sequence[Sequence[str]]) -> None:
    """samples.png, training.gif from the grids of samples/, interpolation.png, curves.png."""
    plots.save_png(run.folder / "samples.png", plots.grid(draw(state, 100), columns=10))
    # save_png doubles every pixel; an animation of single ones is a quarter of the size
    frames = [np.asarray(Image.open(path))[::2, ::2] for path in sorted(run.samples.glob("step_*.png"))]
    plots.save_gif(run.folder / "training.gif", frames, milliseconds=200, scale=1)
    images = draw.from_latents(state, walk(draw.latents(20, purpose=2)[:11], steps=10), np.repeat(np.arange(10), 10))
    plots.save_png(run.folder / "interpolation.png", plots.grid(images, columns=10))
    plots.plot_curves(run.folder / "curves.png", run.metrics, curves)


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


def save_model(run: Run, state: GanState, summary: Mapping[str, Any]) -> None:
    """The generator that draws as model.safetensors, and README.md, a model card for it."""
    save_weights(run.folder / "model.safetensors", jax.device_get(sampling_params(state)), run.identity)
    config = read_config(run.folder)
    figures = {name: value for name, value in summary.items() if isinstance(value, (int, float, str))}
    told = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
    rows = "\n".join(f"| {name} | {value} |" for name, value in told.items())
    (run.folder / "README.md").write_text(
        f"""---
library_name: jaxai
tags: [gan, image-generation, {config["experiment"]}]
---

# A generator of {config["data"]["name"]} images

`model.safetensors` holds what `python experiments/{config["experiment"]}.py sample --workdir FOLDER` draws with:
float32 arrays by their path in the Flax network, which `config.json` describes. It was trained on
{config["data"]["name"]} (fingerprint {config["data"]["fingerprint"]}) and makes such images, nothing else.

| figure | value |
|---|---|
{rows}
""",
        encoding="utf-8",
    )
