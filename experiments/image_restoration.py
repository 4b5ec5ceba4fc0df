"""Images made whole again: holes filled, noise removed, resolution and contrast raised, with and without a GAN.

    python experiments/image_restoration.py                                        # holes in the embedded digits
    python experiments/image_restoration.py --task denoising                       # or super_resolution, contrast
    python experiments/image_restoration.py --no-adversarial                       # the same network without a GAN
    python experiments/image_restoration.py --preset photos                        # photographs at twice the resolution
    python experiments/image_restoration.py --preset photos --scale 4              # ... at four times
    python experiments/image_restoration.py restore --preset photos --image FILE   # your image, by a finished run

One network adds to the damaged image what it lacks. Its loss is the mean absolute difference to the original and, times
``--weight``, that of a discriminator which compares restored and original images (relativistic, with R1 and R2): what
pix2pix (arXiv 1611.07004) and SRGAN (arXiv 1609.04802) do. The adversarial loss makes sharper images at the cost of
PSNR, which favours the mean of all that is possible. Photographs are those of scikit-image, chelsea and camera are held
out; of the digits the test images are.
The run's folder ends with summary.json, model.safetensors, restored.png and curves.png; restored.png has the damaged
images in its first row, the restored ones in the second and the originals in the third.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from jaxai import cli, plots
from jaxai.config import Finished, Training
from jaxai.data import ImageDataset, load
from jaxai.data.images.photos import Photo, crop_batches, load_photos, with_halves
from jaxai.data.pipeline import batches
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.errors import MissingFileError, UserError
from jaxai.gan.losses import LOSSES
from jaxai.gan.networks import Discriminator, Restorer
from jaxai.gan.penalties import r1_r2
from jaxai.gan.sampler import sampling_params
from jaxai.gan.state import GanState, init_fn, init_gan_state
from jaxai.gan.step import apply, gan_step
from jaxai.metrics.digits import features_and_labels, preprocess
from jaxai.metrics.image import image_scores
from jaxai.ops.degradation import holes, low_contrast, noisy
from jaxai.ops.resampling import downscaled, upscaled
from jaxai.run.folder import Run, began_embedded, config_from_json, finished_folder, open_run, read_config
from jaxai.run.weights import parameter_count, read_weights, save_weights
from jaxai.train.compiled_step import Step
from jaxai.train.feed import Batches
from jaxai.train.loop import Every, fit
from jaxai.train.optim import Adam, optimizer
from jaxai.train.state import TrainState
from jaxai.train.supervised import init_state, train_step
from jaxai.typing import Array, Key, PyTree

NAME = "image_restoration"
CURVES = [["loss", "reconstruction"], ["discriminator_loss", "generator_loss"], ["real_logit", "fake_logit"]]
TESTED, SHOWN = 1000, 10  # digits
MOST = 2**24  # pixels of a restored file: 2.5 GiB of memory
SQUARE = 96  # pixels along the side of a photograph's detail in a picture

Damage = Callable[[Array, Key[Array, ""]], tuple[Array, Array | None]]
"""(originals, key) -> (damaged images of their size, the mask of what is missing or None)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Training):
    """Options of this experiment."""

    task: Literal["inpainting", "denoising", "super_resolution", "contrast"] = "inpainting"
    dataset: Literal["mnist", "photos"] = "mnist"
    scale: int = 2
    """By how much super_resolution raises the resolution."""
    sigma: float = 0.4
    """Standard deviation of denoising's noise, of a range of 2: 0.4 is 51 of 255."""
    adversarial: bool = True
    """Whether there is a discriminator."""
    weight: float = 0.01
    """Of its loss beside the mean absolute difference."""
    penalty: float = 1.0
    """Weight of R1 and R2."""
    width: int = 48
    """Channels of the network that restores."""
    blocks: int = 4
    widths: tuple[int, ...] = (64, 32)
    """The discriminator's channels at a quarter and at half of the resolution."""
    hidden: int = 256
    """Width of its dense layer."""
    crop: int = 48
    """Pixels along the side of the squares that photographs are learned from."""
    batch_size: int = 32
    optimizer: Adam = Adam(learning_rate=1e-3, beta1=0.5, beta2=0.99, final_rate=0.01)
    discriminator_optimizer: Adam = Adam(learning_rate=1e-3, beta1=0.0, beta2=0.99, final_rate=0.1)
    ema_half_life: float = 5_000.0
    """Half-life, in images, of the moving average of the network that is scored."""
    decay_steps: int = 3000
    """Steps over which the learning rates take their course."""
    eval_every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "width", "hidden", "batch_size", "decay_steps", "eval_every")
        self.check_at_least(0, "blocks", "sigma", "penalty")
        for name in ("weight", "ema_half_life"):
            if not 0 < getattr(self, name) < np.inf:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        if self.scale not in (2, 4):
            raise UserError(f"--scale must be 2 or 4, got {self.scale}")
        if len(self.widths) != 2 or min(self.widths) < 1:
            raise UserError(f"--widths must be two positive numbers, got {self.widths}")
        if self.crop < 16 or self.crop % 4:
            raise UserError(f"--crop must be a multiple of 4 and at least 16, got {self.crop}")


PRESETS = {
    "default": Config(steps=3000),
    "photos": Config(
        task="super_resolution",
        dataset="photos",
        blocks=6,
        batch_size=16,
        steps=10_000,
        decay_steps=10_000,
    ),
    "debug": Config(
        width=8,
        blocks=1,
        widths=(8, 4),
        hidden=16,
        batch_size=8,
        crop=16,
        steps=20,
        decay_steps=20,
        eval_every=10,
    ),
}


def main(config: Config) -> None:
    """Load, train, restore what was held out, score, draw."""
    embedded = began_embedded(NAME, config)
    mesh = make_mesh(config.devices, batch_size=config.batch_size, shape=config.mesh)
    if config.dataset == "photos":
        photos, held_out = with_halves(load_photos("train"), config.crop), load_photos("test")
        identity: dict[str, Any] = {"name": "photos", "train": sorted(photos), "test": sorted(held_out)}
        source, shape = f"scikit-image's {', '.join(photos)}", (config.crop, config.crop, 3)
        made: Batches = crop_batches(photos, config.crop, config.batch_size, seed=config.seed, **processes(mesh))
        tested = [detail[None] for detail in map(even, held_out.values())]
    else:
        train = load("mnist", "train", data_dir=config.data_dir, embedded_only=embedded)
        test: ImageDataset = load("mnist", "test", data_dir=config.data_dir, embedded_only=train.embedded)
        identity, source, shape = train.identity(), train.source, (28, 28, 1)
        made = batches(train, config.batch_size, seed=config.seed, **processes(mesh))
        tested = [test.images[:TESTED]]
    damage = damaging(config)
    restorer = Restorer(config.width, config.blocks)
    step, init = training(config, restorer, damage, shape)
    run = open_run(NAME, config, identity)
    if summary := run.finished(config.steps):
        report(run, summary)
        return
    restore = Restore(restorer, damage, config.seed)
    look = partial(snapshot, run=run, restore=restore, tested=tested)
    result = fit(
        step,
        init,
        made,
        config,
        run=run,
        mesh=mesh,
        every=[Every(config.eval_every, look)],
        show=["generator_loss", "reconstruction"] if config.adversarial else ["loss"],
    )
    params = jax.device_get(parameters(result.state))
    save_weights(run.folder / "model.safetensors", params, run.identity)
    damaged, restored = zip(*(restore(params, images) for images in tested), strict=True)
    plots.save_png(run.folder / "restored.png", rows(damaged, restored, tested))
    plots.plot_curves(run.folder / "curves.png", run.metrics, CURVES)
    summary = {
        "steps": int(result.state.step),
        "data": source,
        "task": config.task,
        "damaged": scores(config, damaged, tested),
        "restored": scores(config, restored, tested),
        "parameters": parameter_count(params),
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
    }
    run.write_summary(summary)
    report(run, summary)


def even(photo: Photo) -> Photo:
    """A photograph without the pixels that a factor of 4 leaves over at the right and at the bottom."""
    height, width = (size // 4 * 4 for size in photo.shape[:2])
    return photo[:height, :width]


def damaging(config: Config) -> Damage:
    """What the task undoes."""

    def damage(images: Array, key: Key[Array, ""]) -> tuple[Array, Array | None]:
        if config.task == "inpainting":
            return holes(images, key)
        if config.task == "denoising":
            return noisy(images, key, config.sigma), None
        if config.task == "contrast":
            return low_contrast(images, key), None
        return upscaled(downscaled(images, config.scale), config.scale), None

    return damage


def restored(restorer: Restorer, params: PyTree, images: Array, mask: Array | None) -> Array:
    """The network's images; where a mask says what is missing, the rest stays as it is."""
    if mask is None:
        return apply(restorer, params, images)
    return jnp.where(mask > 0, apply(restorer, params, images, mask), images)


def training(
    config: Config, restorer: Restorer, damage: Damage, shape: tuple[int, int, int]
) -> tuple[Step, Callable[[], PyTree]]:
    """The training step on a batch of pixels, and the function that makes the first state."""
    discriminator = Discriminator(config.widths, config.hidden)
    txs = optimizer(config.optimizer, config.decay_steps), optimizer(config.discriminator_optimizer, config.decay_steps)
    hints = [jnp.zeros((2, *shape[:2], 1))] if config.task == "inpainting" else []
    first = init_fn(restorer, jnp.zeros((2, *shape)), *hints), init_fn(discriminator, jnp.zeros((2, *shape)))

    def distance(images: Array, originals: Array) -> Array:
        return jnp.abs(images - originals).mean()

    def with_discriminator(state: GanState, batch: dict[str, Array]) -> tuple[GanState, dict[str, Array]]:
        originals = preprocess(batch["image"])
        damaged, mask = damage(originals, jax.random.fold_in(jax.random.fold_in(state.key, state.step), 2))
        return gan_step(
            state,
            originals,
            generate=lambda params, key: restored(restorer, params, damaged, mask),
            discriminate=partial(apply, discriminator),
            loss=LOSSES["relativistic"],
            penalty=(r1_r2, lambda step: jnp.float32(config.penalty)),
            reconstruction=lambda images: distance(images, originals) / config.weight,
            ema_half_life=config.ema_half_life,
            txs=txs,
        )

    def loss_fn(params: PyTree, batch: dict[str, Array], key: Array) -> tuple[Array, dict[str, Array]]:
        originals = preprocess(batch["image"])
        return distance(restored(restorer, params, *damage(originals, key)), originals), {}

    def alone(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, batch, loss_fn=loss_fn, tx=txs[0], ema_half_life=config.ema_half_life)

    def init() -> PyTree:
        key = jax.random.key(config.seed)
        if config.adversarial:
            return init_gan_state(key, *first, txs=txs, keep_ema=True)
        return init_state(first[0](key), txs[0], key, keep_ema=True)

    return with_discriminator if config.adversarial else alone, init


def parameters(state: GanState | TrainState) -> PyTree:
    """Of the network that restores, averaged."""
    return sampling_params(state) if isinstance(state, GanState) else state.ema_params


class Restore:
    """Damages originals, always in the same way, and restores them."""

    def __init__(self, restorer: Restorer, damage: Damage, seed: int) -> None:
        def both(params: PyTree, images: Array) -> tuple[Array, Array]:
            damaged, mask = damage(preprocess(images), jax.random.key(seed))
            return damaged, restored(restorer, params, damaged, mask)

        self._both = jax.jit(both)

    def __call__(self, params: PyTree, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Damaged and restored uint8 images of uint8 originals [n, height, width, C]."""
        damaged, restored = map(np.asarray, self._both(params, images))
        return plots.to_pixels(damaged), plots.to_pixels(restored)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestoreFile(Finished):
    """Let a finished run restore an image of yours: raise its resolution, or whatever the run has learned."""

    image: Path
    """Of up to 16 million pixels when restored. Of an inpainting run, what is transparent is the hole."""
    out: Path | None = None
    """A new PNG; NAME_restored.png in the run's folder by default."""


def restore_file(options: RestoreFile) -> None:
    """Read, restore, write, say where."""
    folder = finished_folder(NAME, options, ("model.safetensors", "summary.json"))
    try:
        config = config_from_json(Config, read_config(folder))
    except TypeError as error:
        raise UserError(f"{folder} holds no run of this experiment ({error}): train one first") from error
    out = options.out or folder / f"{options.image.stem}_restored.png"
    if out.exists() or out.suffix != ".png":
        raise UserError(f"{out} is {'there already' if out.exists() else 'no .png'}: give another --out")
    restorer, channels = Restorer(config.width, config.blocks), 3 if config.dataset == "photos" else 1
    hints = [jnp.zeros((1, 8, 8, 1))] if config.task == "inpainting" else []
    shapes = jax.eval_shape(restorer.init, jax.random.key(0), jnp.zeros((1, 8, 8, channels)), *hints)["params"]
    params = read_weights(folder / "model.safetensors", shapes)
    pixels, mask = read_image(options.image, "L" if channels == 1 else "RGB", holes=config.task == "inpainting")
    scale = config.scale if config.task == "super_resolution" else 1
    height, width = (scale * size for size in pixels.shape[1:3])
    if height * width > MOST:
        raise UserError(f"--image: {width}x{height} pixels when restored, give one of at most {MOST:,}")
    damaged = upscaled(preprocess(jnp.asarray(pixels)), scale) if scale > 1 else preprocess(jnp.asarray(pixels))
    damaged = damaged if mask is None else damaged * (1 - mask)
    image = plots.to_pixels(whole(restorer, params, damaged, mask))[0]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out.parent} can't be a folder ({error.strerror}): give another --out") from error
    plots.save_png(out, image, scale=1)
    print(f"restored, by a run for {config.task.replace('_', ' ')}: {out}")


def read_image(path: Path, mode: str, *, holes: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """An image file as uint8 [1, height, width, C], and with ``holes`` where it is transparent: float32, C = 1.

    FileNotFoundError, or ValueError where it is no image or has no holes.
    """
    if not path.is_file():
        raise MissingFileError(f"--image {path} is missing: give an image file")
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            pixels, alpha = np.asarray(picture.convert(mode)), np.asarray(picture.convert("RGBA"))[..., 3]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"--image {path} can't be read as an image ({error}): give a PNG or JPEG") from error
    if picture.mode.startswith(("I", "F")):
        raise UserError(f"--image {path} has more than 8 bits a channel: convert it first")
    pixels = pixels.reshape(1, *pixels.shape[:2], -1)
    if not holes:
        return pixels, None
    if alpha.all():
        raise UserError(f"--image {path} has no hole: make transparent what is missing")
    return pixels, (alpha == 0)[None, ..., None].astype(np.float32)


def whole(restorer: Restorer, params: PyTree, damaged: Array, mask: np.ndarray | None) -> np.ndarray:
    """`restored` for one image of any size: edges are repeated until the network's squares of pixels fit."""
    height, width = damaged.shape[1:3]
    more = ((0, 0), (0, -height % restorer.fold), (0, -width % restorer.fold), (0, 0))
    hints = None if mask is None else jnp.pad(mask, more, mode="edge")
    images = jax.jit(partial(restored, restorer))(params, jnp.pad(damaged, more, mode="edge"), hints)
    return np.asarray(images)[:, :height, :width]


def rows(damaged: Any, restored: Any, originals: Any) -> np.ndarray:
    """Damaged images, below them the restored ones, below these the originals; of photographs details."""
    return plots.grid(np.concatenate([details(x) for x in (damaged, restored, originals)]), columns=SHOWN)


def details(images: Any) -> np.ndarray:
    """The first digits, or squares along the middle of each photograph: uint8 [10, height, width, C]."""
    if len(images) == 1:
        return images[0][:SHOWN]
    squares = []
    for (photo,) in images:
        top, count = (photo.shape[0] - SQUARE) // 2, SHOWN // len(images)
        lefts = np.linspace(0, photo.shape[1] - SQUARE, count).astype(int)
        squares += [photo[top : top + SQUARE, left : left + SQUARE] for left in lefts]
    return np.stack(squares)


def snapshot(
    done: int, state: GanState | TrainState, *, run: Run, restore: Restore, tested: list[np.ndarray]
) -> dict[str, float]:
    """Write the picture of the step; no metrics: what is held out is scored at the end."""
    damaged, restored = zip(*(restore(parameters(state), images) for images in tested), strict=True)
    plots.save_png(run.samples / f"step_{done:06d}.png", rows(damaged, restored, tested))
    return {}


def scores(config: Config, images: Any, originals: list[np.ndarray]) -> dict[str, float]:
    """Means of PSNR and SSIM; for digits the share that the classifier takes for what the originals are."""
    border = config.scale if config.task == "super_resolution" else 0
    found = [image_scores(a, b, border=border) for a, b in zip(images, originals, strict=True)]
    means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
    if config.dataset == "photos":
        return means
    labels = [features_and_labels(x)[1] for x in (images[0], originals[0])]
    return means | {"same_class": float((labels[0] == labels[1]).mean())}


def report(run: Run, summary: dict[str, Any]) -> None:
    """Tell a person where the picture is and how close it comes."""
    print(f"\npicture      {run.folder}/restored.png")
    names = {"damaged": "bicubic" if summary["task"] == "super_resolution" else "damaged", "restored": "restored"}
    for key, name in names.items():
        found = summary[key]
        kept = f"   same class {found['same_class']:.1%}" if "same_class" in found else ""
        print(f"{name:12} PSNR {found['psnr']:.2f} dB   SSIM {found['ssim']:.4f}{kept}")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__, commands={"restore": (restore_file, RestoreFile)})
