"""Commands of a finished GAN run: ``sample`` draws, ``invert`` finds the latents of given images."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxai import plots
from jaxai.config import Finished
from jaxai.gan.latents import invert, truncated
from jaxai.gan.sampler import in_blocks
from jaxai.gan.step import apply
from jaxai.metrics.digits import preprocess
from jaxai.run.folder import finished_folder, read_config
from jaxai.run.weights import read_weights
from jaxai.typing import Array, PyTree

FILES = ("model.safetensors", "summary.json")  # of a finished run


STARTS = 4  # of an inversion, for each image


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run's generator: latents [B, Z], and labels [B] where it has ``classes``, to images in [-1, 1]."""

    generator: nn.Module
    latent_size: int
    classes: int
    test: Callable[[Path | None], tuple[np.ndarray, np.ndarray]]
    """From a --data-dir images uint8 [n, height, width, C] that it never saw, and their labels [n]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Finished):
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
class Invert(Finished):
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
    """Sampler, write, say where. ValueError for a label that the run does not know and a folder that holds files."""
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
        plots.save_png(out / f"{number:05d}.png", image, scale=1)
    plots.save_png(out / "sheet.png", plots.grid(images, columns=min(10, options.count)))
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
    plots.save_png(folder / "inverted.png", plots.grid(rows, columns=len(images)))
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
    return plots.to_pixels(in_blocks(jax.jit(partial(apply, trained.generator)), params, *inputs))
