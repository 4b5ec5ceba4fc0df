"""Image restoration (inpainting, denoising, super-resolution, contrast enhancement), with and without a GAN.

    python experiments/image_restoration.py                                        # inpainting of the embedded digits
    python experiments/image_restoration.py --task denoising                       # or super_resolution, contrast
    python experiments/image_restoration.py --no-adversarial                       # the same network without a GAN
    python experiments/image_restoration.py --preset photos                        # photographs, 2x super-resolution
    python experiments/image_restoration.py restore --preset photos --image FILE   # your image, by a finished run

The network predicts a correction, which is added to the damaged image. Its loss is the mean absolute difference to the
original plus ``--weight`` times the adversarial loss of a discriminator that compares restored and original images
(relativistic, with R1 and R2), as in pix2pix (arXiv 1611.07004) and SRGAN (arXiv 1609.04802). The adversarial loss
gives sharper images at the cost of PSNR, which favours the mean of all possible originals. Scored are MNIST's test
digits, or scikit-image's photographs chelsea and camera, which are not trained on. restored.png has rows of damaged,
restored and original images.
"""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxai import experiment, gan, plots
from jaxai.data import batches, crop_batches, load_photos, photo_details, trimmed, with_halves
from jaxai.errors import UserError
from jaxai.metrics.image import restoration_scores
from jaxai.ops import RestorationTask, degrade, to_signed
from jaxai.run import Run
from jaxai.train import Adam, Keys, Result, Supervised, optimizer
from jaxai.typing import Array, PyTree

NAME = "image_restoration"
CURVES = [["loss", "reconstruction"], ["discriminator_loss", "generator_loss"], ["real_logit", "fake_logit"]]
TESTED, SHOWN, SQUARE = 1000, 10, 96  # digits scored, images per row, side in pixels of the photograph details shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gan.ImageToImageConfig):
    """Options of this experiment."""

    task: RestorationTask = "inpainting"
    dataset: Literal["mnist", "photos"] = "mnist"
    scale: int = 2
    """Factor of super_resolution, 2 or 4."""
    sigma: float = 0.4
    """Standard deviation of the noise in denoising, for pixels in [-1, 1]: 0.4 is 51 of 255 grey levels."""
    adversarial: bool = True
    """Train with a discriminator."""
    weight: float = 0.01
    """Weight of the adversarial loss relative to the mean absolute difference."""
    crop: int = 48
    """Side, in pixels, of the square crops of photographs used for training."""
    discriminator_optimizer: Adam = Adam(learning_rate=1e-3, beta1=0.0, beta2=0.99, final_rate=0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "sigma")
        self.check_positive("weight")
        if self.scale not in (2, 4):
            raise UserError(f"--scale must be 2 or 4, got {self.scale}")
        if self.crop < 16 or self.crop % 4:
            raise UserError(f"--crop must be a multiple of 4 and at least 16, got {self.crop}")

    @property
    def restorer(self) -> gan.Restorer:
        return gan.Restorer(self.width, self.blocks)

    def damage(self, images: Array, key: Array) -> tuple[Array, Array | None]:
        """Damaged images of the same size, and the mask of missing pixels or None."""
        return degrade(images, key, task=self.task, sigma=self.sigma, scale=self.scale)


RATES = Adam(learning_rate=1e-3, beta1=0.5, beta2=0.99, final_rate=0.01)
DEFAULT = Config(width=48, blocks=4, hidden=256, optimizer=RATES, steps=3000, decay_steps=3000, eval_every=1000)
PHOTOS: dict[str, Any] = {"task": "super_resolution", "dataset": "photos", "blocks": 6, "batch_size": 16}
DEBUG: dict[str, Any] = {"width": 8, "blocks": 1, "widths": (8, 4), "hidden": 16, "batch_size": 8, "crop": 16}
PRESETS = {
    "default": DEFAULT,
    "photos": dataclasses.replace(DEFAULT, **PHOTOS, steps=10_000, decay_steps=10_000),
    "debug": dataclasses.replace(DEFAULT, **DEBUG, steps=20, decay_steps=20, eval_every=10),
}


def data(config: Config) -> tuple[dict[str, Any], tuple[int, int, int], list[np.ndarray]]:
    """The task's data, the shape of its images, and held-out originals in groups [n, height, width, C] of one size."""
    options: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed}
    if config.dataset == "photos":
        photos, held_out = with_halves(load_photos("train"), config.crop), load_photos("test")
        identity = {"name": "photos", "train": sorted(photos), "test": sorted(held_out)}
        crops = partial(crop_batches, photos, config.crop, **options)
        task = {"identity": identity, "source": f"scikit-image's {', '.join(photos)}", "batches": crops}
        return task, (config.crop, config.crop, 3), [trimmed(photo, 4)[None] for photo in held_out.values()]
    train, test = experiment.splits(NAME, config, "mnist")
    task = {"identity": train.identity(), "source": train.source, "batches": partial(batches, train, **options)}
    return task, (28, 28, 1), [test.images[:TESTED]]


def build(config: Config) -> experiment.Task:
    """The training, evaluated by pictures, with scores of the held-out images at the end."""
    examples, shape, originals = data(config)
    training, damaged_and_restored = trainer(config, shape), jax.jit(partial(damage_and_restore, config))

    def restore(params: PyTree) -> list[list[np.ndarray]]:
        groups = jax.device_get([damaged_and_restored(params, images) for images in originals])
        return [[plots.to_pixels(images) for images in group] for group in zip(*groups, strict=True)]

    def evaluate(run: Run, step: int, state: Any) -> dict[str, float]:
        gan.save_grid(run, step, rows(*restore(training.params(state)), originals))
        return {}

    def finish(run: Run, result: Result) -> dict[str, Any]:
        damaged, restored = restore(training.params(result.state))
        plots.save_png(run.folder / "restored.png", plots.grid(rows(damaged, restored, originals), columns=SHOWN))
        plots.plot_curves(run.folder / "curves.png", run.metrics, CURVES)
        border = config.scale if config.task == "super_resolution" else 0
        scores = partial(restoration_scores, originals=originals, border=border, digits=config.dataset == "mnist")
        return {"task": config.task, "damaged": scores(damaged), "restored": scores(restored)}

    return experiment.Task(
        **examples,
        batch_size=config.batch_size,
        trainer=training,
        evaluate=evaluate,
        eval_every=config.eval_every,
        finish=finish,
        report=report,
        show=["generator_loss", "reconstruction"] if config.adversarial else ["loss"],
    )


def trainer(config: Config, shape: tuple[int, int, int]) -> gan.Gan | Supervised:
    """The trainer of the network on batches of pixels, with or without a discriminator."""
    txs = optimizer(config.optimizer, config.decay_steps), optimizer(config.discriminator_optimizer, config.decay_steps)
    hints = [jnp.zeros((2, *shape[:2], 1))] if config.task == "inpainting" else []
    init_restorer = gan.init_fn(config.restorer, jnp.zeros((2, *shape)), *hints)

    def restored(params: PyTree, batch: gan.Batch, key: Array) -> Array:
        return gan.restore(config.restorer, params, *config.damage(to_signed(batch["image"]), key))

    def distance(images: Array, batch: gan.Batch) -> Array:
        return jnp.abs(images - to_signed(batch["image"])).mean()

    if not config.adversarial:
        return Supervised(
            init_params=init_restorer,
            loss_fn=lambda params, batch, key: (distance(restored(params, batch, key), batch), {}),
            tx=txs[0],
            ema_half_life=config.ema_half_life,
        )
    discriminator = gan.Discriminator(config.widths, config.hidden)
    return gan.Gan(
        init_generator=init_restorer,
        init_discriminator=gan.init_fn(discriminator, jnp.zeros((2, *shape))),
        real=lambda batch: to_signed(batch["image"]),
        generate=lambda params, key, batch: restored(params, batch, jax.random.fold_in(key, 2)),
        discriminate=lambda params, images, batch: gan.apply(discriminator, params, images),
        loss=gan.LOSSES["relativistic"],
        penalty=config.weighted_penalty,
        reconstruction=lambda images, batch: distance(images, batch) / config.weight,
        ema_half_life=config.ema_half_life,
        txs=txs,
    )


def damage_and_restore(config: Config, params: PyTree, pixels: Array) -> tuple[Array, Array]:
    """Damaged images, with a key that depends on the seed alone, and restored images."""
    damaged, mask = config.damage(to_signed(pixels), Keys(config.seed).evaluation)
    return damaged, gan.restore(config.restorer, params, damaged, mask)


def rows(*groups: list[np.ndarray]) -> np.ndarray:
    """Ten digits, or ten squares from the photographs, of each group: damaged, restored and original."""
    return np.concatenate([x[0][:SHOWN] if len(x) == 1 else photo_details(x, SQUARE, SHOWN) for x in groups])


def report(run: Run, summary: dict[str, Any]) -> None:
    """Print the path of the picture and the scores of damaged and restored images."""
    print(f"\npicture      {run.folder}/restored.png")
    damaged = "bicubic" if summary["task"] == "super_resolution" else "damaged"
    for name, found in ((damaged, summary["damaged"]), ("restored", summary["restored"])):
        kept = f"   same class {found['same_class']:.1%}" if "same_class" in found else ""
        print(f"{name:12} PSNR {found['psnr']:.2f} dB   SSIM {found['ssim']:.4f}{kept}")
    print(f"{summary['parameters']:,} parameters, trained in {summary['train_seconds']} s")


def trained_restorer(config: Config) -> gan.TrainedRestorer:
    """The network for a finished run's config."""
    channels, scale = 1 if config.dataset == "mnist" else 3, config.scale if config.task == "super_resolution" else 1
    return gan.TrainedRestorer(config.restorer, config.task, channels, scale, masked=config.task == "inpainting")


if __name__ == "__main__":
    experiment.run(NAME, PRESETS, build, __doc__, gan.restorer_commands(NAME, Config, trained_restorer))
