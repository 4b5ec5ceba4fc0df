"""What GAN experiments share: pictures on the way and at the end, digits' scores, and a finished run's generator."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from jaxai import cli, pictures
from jaxai.adversarial.latents import invert, truncated, walk
from jaxai.gan_watch import Watch, Watched
from jaxai.metrics.digits import features_and_labels, preprocess
from jaxai.metrics.diversity import COMPARED
from jaxai.metrics.generation import evaluate_digits, evaluation_size, frechet_distance
from jaxai.train.adversarial import Draw, apply, drawing, in_blocks
from jaxai.train.run import Run, finished_folder, read_config
from jaxai.train.state import GanState
from jaxai.train.weights import read_weights, save_weights
from jaxai.typing import Array, Pixels, PyTree

FILES = ("model.safetensors", "summary.json")  # of a finished run
Look = Callable[[int, GanState], dict[str, float]]
"""(done, state) -> metrics: what happens every so many steps."""
STARTS = 4  # of an inversion, for each image


def reference(train: Pixels, test: Pixels) -> Pixels:
    """A thousand real images to compare samples with on the way, or as many as there are: test before train."""
    return np.concatenate([test, train[:1000]])[:1000]


def snapshot(config: Watched, run: Run, draw: Draw, real: Pixels) -> Look:
    """Write a grid of samples from fixed noise into the run's samples/, and watch their variety."""
    watch = Watch(config, run, np.asarray(real))

    def look(done: int, state: GanState) -> dict[str, float]:
        images = pictures.to_pixels(draw(state, COMPARED))
        write_grid(done, images[:100], run)
        return watch.act(done, watch.measure(images))

    return look


def digit_snapshot(config: Watched, run: Run, draw: Draw, real: Pixels) -> Look:
    """The same, with the digits' histogram, and a quick MNIST-FD from as many samples as ``real`` ones."""
    features_of_real, labels = features_and_labels(real)
    watch = Watch(config, run, np.asarray(real), labels)

    def look(done: int, state: GanState) -> dict[str, float]:
        images = pictures.to_pixels(draw(state, len(real)))
        write_grid(done, images[:100], run)
        features, labels = features_and_labels(images)
        found = watch.act(done, watch.measure(images, labels))
        return {"quick_mnist_fd": frechet_distance(features_of_real, features)} | found

    return look


def digit_scores(draw: Draw, state: GanState, train: Pixels, test: Pixels) -> dict[str, Any]:
    """`evaluate_digits` of as many samples as it takes; of classes, the share that is what was asked for."""
    samples = pictures.to_pixels(draw(state, evaluation_size(train, test)))
    scores: dict[str, Any] = evaluate_digits(samples, train, test)
    if draw.classes:
        _, labels = features_and_labels(samples)
        scores["right_class"] = float((labels == np.arange(len(labels)) % draw.classes).mean())
    return scores


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


def save_model(run: Run, state: GanState, summary: Mapping[str, Any]) -> None:
    """The generator that draws as model.safetensors, and README.md, a model card for it."""
    save_weights(run.folder / "model.safetensors", jax.device_get(drawing(state)), run.identity)
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


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run's generator: latents [B, Z], and labels [B] where it has ``classes``, to images in [-1, 1]."""

    generator: nn.Module
    latent_size: int
    classes: int
    test: Callable[[Path | None], tuple[np.ndarray, np.ndarray]]
    """From a --data-dir images uint8 [n, height, width, C] that it never saw, and their labels [n]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(cli.Finished):
    """Let a finished run draw: single images and a sheet of them, in a folder of their own."""

    count: int = 64
    """How many."""
    truncation: float = 0.0
    """Latents lie within this many deviations: less variety, fewer oddities; 0: anywhere."""
    label: int | None = None
    """The class, of a run that knows classes; without it all of them in turn."""
    seed: int = 0
    """Of the latents."""
    out: Path | None = None
    """The folder, new or empty; images_SEED in the run's by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "count")
        self.check_at_least(0, "truncation", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invert(cli.Finished):
    """Find the latents of images that a finished run never saw: inverted.png, below the images what it draws."""

    count: int = 10
    """How many images."""
    steps: int = 500
    """Of gradient descent, from each of four starts."""
    seed: int = 0
    """Of the starts."""
    data_dir: Path | None = None
    """Where the images are; without it the embedded digits'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "count", "steps")
        self.check_at_least(0, "seed")


def commands(name: str, build: Callable[[dict[str, Any]], Trained]) -> dict[str, Any]:
    """The commands ``sample`` and ``invert`` of an experiment; ``build`` makes the generator of a run's config."""
    return {"sample": (partial(sample, name, build), Sample), "invert": (partial(inverted, name, build), Invert)}


def sample(name: str, build: Callable[[dict[str, Any]], Trained], options: Sample) -> None:
    """Draw, write, say where. ValueError for a label that the run does not know and a folder that holds files."""
    folder = finished_folder(name, options, FILES)
    trained, params = restored(folder, build)
    if options.label is not None and not 0 <= options.label < trained.classes:
        known = f"this run knows 0 to {trained.classes - 1}" if trained.classes else "this run knows no classes"
        raise ValueError(f"--label {options.label}: {known}")
    out = options.out or folder / f"images_{options.seed}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: give another --out or --seed")
    limit = options.truncation or np.inf
    latents = truncated(jax.random.key(options.seed), options.count, trained.latent_size, limit)
    labels = np.arange(options.count) % max(trained.classes, 1) if options.label is None else options.label
    images = drawn(trained, params, latents, np.broadcast_to(labels, options.count))
    out.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        pictures.save_png(out / f"{number:05d}.png", image, scale=1)
    pictures.save_png(out / "sheet.png", pictures.grid(images, columns=min(10, options.count)))
    print(f"{options.count} images and sheet.png in {out}")


def inverted(name: str, build: Callable[[dict[str, Any]], Trained], options: Invert) -> None:
    """Invert, draw, say how close it came."""
    folder = finished_folder(name, options, FILES)
    trained, params = restored(folder, build)
    images, labels = trained.test(options.data_dir)
    images, labels = images[: options.count], labels[: options.count].astype(np.int32)
    inputs = [jnp.asarray(labels)] if trained.classes else []

    def generate(latents: Array) -> Array:
        return apply(trained.generator, params, latents, *inputs)

    start = jax.random.normal(jax.random.key(options.seed), (STARTS, len(images), trained.latent_size))
    latents, left = jax.jit(partial(invert, generate, steps=options.steps))(preprocess(images), start)
    rows = np.concatenate([images, drawn(trained, params, latents, labels)])
    pictures.save_png(folder / "inverted.png", pictures.grid(rows, columns=len(images)))
    print(f"mean squared difference {float(left.mean()):.4f} of images in [-1, 1]: {folder / 'inverted.png'}")


def restored(folder: Path, build: Callable[[dict[str, Any]], Trained]) -> tuple[Trained, PyTree]:
    """A run's generator and its parameters. ValueError where the files are damaged or another run's."""
    try:
        trained = build(read_config(folder))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no run of this experiment ({error}): train one first") from error
    labels = [jnp.zeros(1, jnp.int32)] if trained.classes else []
    latents = jnp.zeros((1, trained.latent_size))
    shapes = jax.eval_shape(trained.generator.init, jax.random.key(0), latents, *labels)["params"]
    return trained, jax.tree.map(jnp.asarray, read_weights(folder / "model.safetensors", shapes))


def drawn(trained: Trained, params: PyTree, latents: Array, labels: np.ndarray) -> np.ndarray:
    """Images uint8 of latents, of the labels' classes where the run knows classes."""
    inputs = [np.asarray(latents), *([labels.astype(np.int32)] if trained.classes else [])]
    return pictures.to_pixels(in_blocks(jax.jit(partial(apply, trained.generator)), params, *inputs))
