"""Commands on a finished run: ``sample`` draws images, ``invert`` finds latents, ``restore`` restores an image."""

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
from jaxai.data.images.files import read_image
from jaxai.errors import UserError
from jaxai.gan.latents import invert, truncated
from jaxai.gan.networks import Restorer, restore
from jaxai.gan.state import init_fn
from jaxai.gan.step import apply
from jaxai.ops.batched import map_batches
from jaxai.ops.pixels import to_signed
from jaxai.ops.resampling import pad_to_multiple, upscaled
from jaxai.run.finished import FinishedRun, load_run
from jaxai.train.keys import Keys
from jaxai.typing import Array, PyTree

STARTS = 4  # initial latents per inverted image
MOST = 2**24  # pixels of a restored image: 2.5 GiB of memory


@dataclasses.dataclass(frozen=True)
class TrainedGenerator:
    """A generator from latents [B, Z], and labels [B] if it has ``classes``, to images in [-1, 1].

    ``test_images(data_dir)`` returns held-out images uint8 [n, height, width, C] and their labels [n].
    """

    network: nn.Module
    latent_size: int
    classes: int
    test_images: Callable[[Path | None], tuple[np.ndarray, np.ndarray]]

    def draw(self, params: PyTree, latents: Array, labels: np.ndarray) -> np.ndarray:
        """Generate uint8 images from latents [n, Z]; ``labels`` [n] are ignored without classes."""
        inputs = [np.asarray(latents), *([labels.astype(np.int32)] if self.classes else [])]
        generate = jax.jit(partial(apply, self.network))
        return plots.to_pixels(map_batches(lambda rows: generate(params, *rows), inputs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Finished):
    """Draw images with a finished run, as single files and as a contact sheet, in a new folder."""

    count: int = 64
    """Number of images."""
    truncation: float = 0.0
    """Bound on the latents in standard deviations, for fewer artefacts at less variety; 0: none."""
    label: int | None = None
    """The class, for a conditional generator; all classes in turn by default."""
    seed: int = 0
    """Seed of the latents."""
    out: Path | None = None
    """Output folder, new or empty; by default images_SEED in the run's folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "count")
        self.check_at_least(0, "truncation", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invert(Finished):
    """Find the latents of test images: inverted.png has the images above their reconstructions by a finished run."""

    count: int = 10
    """Number of images."""
    steps: int = 500
    """Steps of gradient descent from each of four starts."""
    seed: int = 0
    """Seed of the starts."""
    data_dir: Path | None = None
    """Folder of the data set; by default the embedded digits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "count", "steps")
        self.check_at_least(0, "seed")


def generator_commands[ConfigT](
    name: str, kind: type[ConfigT], generator_of: Callable[[ConfigT], TrainedGenerator]
) -> dict[str, Any]:
    """The commands ``sample`` and ``invert`` of an experiment with configs of class ``kind``."""

    def load(options: Finished) -> tuple[FinishedRun[ConfigT], TrainedGenerator, PyTree]:
        run = load_run(name, kind, options)
        generator = generator_of(run.config)
        inputs = [jnp.zeros((1, generator.latent_size)), *([jnp.zeros(1, jnp.int32)] if generator.classes else [])]
        params = run.params(lambda key: generator.network.init(key, *inputs)["params"])
        return run, generator, jax.tree.map(jnp.asarray, params)

    def sample_run(options: Sample) -> None:
        sample(*load(options), options)

    def invert_run(options: Invert) -> None:
        invert_images(*load(options), options)

    return {"sample": (sample_run, Sample), "invert": (invert_run, Invert)}


def sample(run: FinishedRun, generator: TrainedGenerator, params: PyTree, options: Sample) -> None:
    """Write generated images and print their folder. Raises UserError for an unknown label or a non-empty folder."""
    if options.label is not None and not 0 <= options.label < generator.classes:
        known = f"this run knows 0 to {generator.classes - 1}" if generator.classes else "this run knows no classes"
        raise UserError(f"--label {options.label}: {known}")
    out = options.out or run.folder / f"images_{options.seed}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: give another --out or --seed")
    limit = options.truncation or np.inf
    latents = truncated(Keys(options.seed).sampling, options.count, generator.latent_size, limit)
    labels = np.arange(options.count) % max(generator.classes, 1) if options.label is None else options.label
    images = generator.draw(params, latents, np.broadcast_to(labels, options.count))
    out.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        plots.save_png(out / f"{number:05d}.png", image, scale=1)
    plots.save_png(out / "sheet.png", plots.grid(images, columns=min(10, options.count)))
    print(f"{options.count} images and sheet.png in {out}")


def invert_images(run: FinishedRun, generator: TrainedGenerator, params: PyTree, options: Invert) -> None:
    """Invert test images, write them with their reconstructions, and print the mean squared difference."""
    images, labels = generator.test_images(options.data_dir)
    images, labels = images[: options.count], labels[: options.count].astype(np.int32)
    inputs = [jnp.asarray(labels)] if generator.classes else []

    def generate(latents: Array) -> Array:
        return apply(generator.network, params, latents, *inputs)

    start = jax.random.normal(Keys(options.seed).sampling, (STARTS, len(images), generator.latent_size))
    latents, left = jax.jit(partial(invert, generate, steps=options.steps))(to_signed(images), start)
    rows = np.concatenate([images, generator.draw(params, latents, labels)])
    plots.save_png(run.folder / "inverted.png", plots.grid(rows, columns=len(images)))
    print(f"mean squared difference {float(left.mean()):.4f} of images in [-1, 1]: {run.folder / 'inverted.png'}")


@dataclasses.dataclass(frozen=True)
class TrainedRestorer:
    """A network that restores images of ``channels`` for ``task``, at ``scale`` times their resolution.

    With ``masked`` it restores only the transparent pixels.
    """

    network: Restorer
    task: str
    channels: int
    scale: int
    masked: bool

    def params(self, run: FinishedRun) -> PyTree:
        """The parameters of a run."""
        hints = [jnp.zeros((1, 8, 8, 1))] if self.masked else []
        return run.params(init_fn(self.network, jnp.zeros((1, 8, 8, self.channels)), *hints))

    def restore(self, params: PyTree, pixels: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Restore a uint8 image [1, height, width, C] of any size; ``mask`` is 1 in its holes, else 0.

        The image is edge-padded to a multiple of the network's ``fold``.
        """
        images = to_signed(pixels)
        images = upscaled(images, self.scale) if self.scale > 1 else images
        images = images if mask is None else images * (1 - mask)
        height, width = images.shape[1:3]
        padded = [None if x is None else pad_to_multiple(jnp.asarray(x), self.network.fold) for x in (images, mask)]
        whole = jax.jit(partial(restore, self.network))(params, *padded)
        return plots.to_pixels(np.asarray(whole)[:, :height, :width])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restore(Finished):
    """Restore an image file with a finished run: inpaint, denoise, upscale or raise contrast, as it was trained to."""

    image: Path
    """Image file, up to 16 million pixels when restored. An inpainting run fills its transparent pixels."""
    out: Path | None = None
    """Output file, a new PNG; by default NAME_restored.png in the run's folder."""


def restorer_commands[ConfigT](
    name: str, kind: type[ConfigT], restorer_of: Callable[[ConfigT], TrainedRestorer]
) -> dict[str, Any]:
    """The command ``restore`` of an experiment with configs of class ``kind``."""

    def restore_run(options: Restore) -> None:
        run = load_run(name, kind, options)
        restore_file(run, restorer_of(run.config), options)

    return {"restore": (restore_run, Restore)}


def restore_file(run: FinishedRun, restorer: TrainedRestorer, options: Restore) -> None:
    """Write the restored image and print its path. Raises UserError if the file exists or can't be written."""
    out = options.out or run.folder / f"{options.image.stem}_restored.png"
    if out.exists() or out.suffix != ".png":
        raise UserError(f"{out} is {'there already' if out.exists() else 'no .png'}: give another --out")
    params = restorer.params(run)
    pixels, mask = read_image(options.image, restorer.channels, masked=restorer.masked)
    height, width = (restorer.scale * size for size in pixels.shape[1:3])
    if height * width > MOST:
        raise UserError(f"--image: {width}x{height} pixels when restored, give one of at most {MOST:,}")
    image = restorer.restore(params, pixels, mask)[0]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out.parent} can't be a folder ({error.strerror}): give another --out") from error
    plots.save_png(out, image, scale=1)
    print(f"restored, by a run for {restorer.task.replace('_', ' ')}: {out}")
