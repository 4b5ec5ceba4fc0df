"""A GAN that draws handwritten digits: train it, look at it, measure it.

    python experiments/gan_mnist.py                                # the embedded 5,000 digits, at most 6 CPU minutes
    python experiments/gan_mnist.py --data-dir DIR                 # all 60,000 (idx files, or prepared with tfds)
    python experiments/gan_mnist.py --preset article               # the article's network and training, repaired
    python experiments/gan_mnist.py --preset gpu --platform gpu    # all 60,000, larger, bfloat16 activations
    python experiments/gan_mnist.py sample --count 100 --truncation 0.7   # a finished run draws
    python experiments/gan_mnist.py invert                         # ... images that it never saw, as well as it can

Preset ``default``: the R3GAN loss (arXiv 2501.05441): relativistic pairing with R1 and R2, no normalisation.

Preset ``article`` keeps the article's layers, losses, Adam 1e-4 and batch of 32, with what it took to make them run: a
dense 7x7x128 layer and a reshape before the first transposed convolution (the article feeds it a vector); one logit
after the discriminator's 128 sigmoids (the article stops there, though its loss takes one probability an image);
cross-entropies computed from the logit, since log(sigmoid) overflows in float32.

The run's folder (runs/gan_mnist/PRESET) ends with samples.png, training.gif, interpolation.png, curves.png,
summary.json, model.safetensors and README.md, a model card. The same command goes on with an interrupted run.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxai import cli
from jaxai.data import ImageDataset, load
from jaxai.data.pipeline import batches
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.gan import networks as gan
from jaxai.gan.augmentation import Policy, augment
from jaxai.gan.collapse import CollapseConfig
from jaxai.gan.commands import Trained, commands
from jaxai.gan.losses import LOSSES
from jaxai.gan.penalties import r1_r2
from jaxai.gan.report import digit_scores, digit_snapshot, finish_pictures, reference, report, save_model
from jaxai.gan.sampler import Sampler
from jaxai.gan.state import GanState, init_fn, init_gan_state
from jaxai.gan.step import apply, from_noise, gan_step
from jaxai.metrics.digits import preprocess
from jaxai.run.folder import began_embedded, config_from_json, open_run
from jaxai.train.compiled_step import Step
from jaxai.train.loop import Every, fit
from jaxai.train.optim import Adam, cosine, optimizer
from jaxai.typing import Array

NAME = "gan_mnist"


CURVES = [["discriminator_loss", "generator_loss"], ["real_logit", "fake_logit"], ["penalty"], ["quick_mnist_fd"]]
"""The panels of curves.png."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CollapseConfig):
    """Options of this experiment."""

    network: Literal["article", "residual"] = "residual"
    widths: tuple[int, ...] = (64, 32)
    """Channels at 7x7, 14x14, ...; each width doubles the resolution (residual network)."""
    hidden: int = 512
    """Width of the dense layer next to the latents and next to the logit (residual network)."""
    blocks: int = 0
    """Residual blocks at each resolution."""
    latent_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters are float32."""
    loss: Literal["non_saturating", "relativistic"] = "relativistic"
    penalty: float = 1.0
    """Weight gamma of R1 and R2 at the first step; 0 switches them off."""
    final_penalty: float = 0.1
    """Their weight from step decay_steps on, along a cosine."""
    augment: tuple[Policy, ...] = ()
    """What real and generated images go through before the discriminator sees them (DiffAugment); digits are grey:
    brightness, contrast, translation, cutout."""
    ada_images: float = 0.0
    """With a number, an image goes through each with a probability that follows how sure the discriminator is, from 0
    to 1 in so many images at the fastest; 0: always."""
    decay_steps: int = 4500
    """Steps over which penalty and learning rate take their course."""
    batch_size: int = 64
    optimizer: Adam = Adam(learning_rate=2e-3, beta1=0.0, beta2=0.99, final_rate=0.1)
    ema_half_life: float = 10_000.0
    """Half-life, in images, of the generator's moving average that draws the samples; 0: no average."""
    eval_every: int = 250
    """Steps between two sample grids, each with a quick MNIST-FD."""
    full_data: bool = False
    """Refuse the embedded digits: a large network learns 4,500 images by heart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "batch_size", "latent_size", "hidden", "eval_every", "decay_steps")
        if "saturation" in self.augment:
            raise ValueError("--augment saturation needs colour, digits are grey: leave it out")
        if self.ada_images and not self.augment:
            raise ValueError("--ada-images has nothing to adapt: give --augment too")
        self.check_at_least(0, "ada_images", "blocks", "penalty", "final_penalty", "ema_half_life")
        if not 1 <= len(self.widths) <= 2 or min(self.widths) < 1:
            raise ValueError(f"--widths must be one or two positive numbers (28 halves twice), got {self.widths}")


PRESETS = {
    "default": Config(steps=4500),
    "article": Config(
        network="article",
        latent_size=100,
        loss="non_saturating",
        penalty=0.0,
        batch_size=32,
        optimizer=Adam(learning_rate=1e-4),
        ema_half_life=0.0,
        steps=4000,
    ),
    "gpu": Config(
        widths=(512, 256),
        hidden=1024,
        blocks=2,
        dtype="bfloat16",
        batch_size=256,
        steps=40_000,
        decay_steps=40_000,
        optimizer=Adam(learning_rate=2e-4, beta1=0.0, beta2=0.99, warmup=1000, final_rate=0.25),
        ema_half_life=100_000.0,
        eval_every=2000,
        full_data=True,
    ),
    "debug": Config(widths=(16, 8), hidden=32, blocks=1, batch_size=16, steps=40, decay_steps=40, eval_every=20),
}


def main(config: Config) -> None:
    """Load, train with pictures on the way, evaluate, report."""
    train, test = datasets(config)
    generator, discriminator = networks(config)
    step, init = training(config, generator, discriminator)
    mesh = make_mesh(config.devices, batch_size=config.batch_size, shape=config.mesh)
    input_batches = batches(train, config.batch_size, seed=config.seed, **processes(mesh))
    run = open_run(NAME, config, train.identity())
    if summary := run.finished(config.steps):
        report(run, summary)
        return
    draw = Sampler(generator, config.latent_size, config.seed)
    result = fit(
        step,
        init,
        input_batches,
        config,
        run=run,
        mesh=mesh,
        every=[Every(config.eval_every, digit_snapshot(config, run, draw, reference(train.images, test.images)))],
        show=["discriminator_loss", "generator_loss"],
    )
    steps = int(result.state.step)
    finish_pictures(run, draw, result.state, CURVES)
    summary = {
        "steps": steps,
        "images_seen": steps * config.batch_size,
        "data": train.source,
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
        **digit_scores(draw, result.state, train.images, test.images),
    }
    save_model(run, result.state, summary)
    run.write_summary(summary)
    report(run, summary)


def datasets(config: Config) -> tuple[ImageDataset, ImageDataset]:
    """Train and test; a run that began with the embedded digits goes on with them, network or not."""
    train = load("mnist", "train", data_dir=config.data_dir, embedded_only=began_embedded(NAME, config))
    if config.full_data and train.embedded:
        raise ValueError(
            f"--preset {config.preset} wants all of MNIST: pass --data-dir, or --no-full-data to do without"
        )
    return train, load("mnist", "test", data_dir=config.data_dir, embedded_only=train.embedded)


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator."""
    if config.network == "article":
        return gan.ArticleGenerator(), gan.ArticleDiscriminator()
    sizes = {
        "widths": config.widths,
        "hidden": config.hidden,
        "blocks": config.blocks,
        "dtype": jnp.dtype(config.dtype),
    }
    return gan.Generator(**sizes), gan.Discriminator(**sizes)


def training(config: Config, generator: nn.Module, discriminator: nn.Module) -> tuple[Step, Callable[[], GanState]]:
    """The training step on a batch of pixels, and the function that makes the first state."""
    tx = optimizer(config.optimizer, config.decay_steps)
    weight = partial(cosine, start=config.penalty, end=config.final_penalty, decay_steps=config.decay_steps)

    def augment_fn(images: Array, key: Array, state: GanState) -> Array:
        return augment(images, key, config.augment, 1.0 if state.strength is None else state.strength, fill=-1.0)

    def step(state: GanState, batch: dict[str, Array]) -> tuple[GanState, dict[str, Array]]:
        return gan_step(
            state,
            preprocess(batch["image"]),
            generate=from_noise(generator, config.latent_size, len(batch["image"])),
            discriminate=partial(apply, discriminator),
            loss=LOSSES[config.loss],
            penalty=(r1_r2, weight) if config.penalty else None,
            ada_images=config.ada_images,
            augment_fn=augment_fn if config.augment else None,
            ema_half_life=config.ema_half_life,
            txs=(tx, tx),
        )

    def init() -> GanState:
        key, kept = jax.random.key(config.seed), {"keep_ema": config.ema_half_life > 0}
        latents, images = jnp.zeros((1, config.latent_size)), jnp.zeros((2, 28, 28, 1))
        first = init_fn(generator, latents), init_fn(discriminator, images)
        return init_gan_state(key, *first, adaptive=config.ada_images > 0, txs=(tx, tx), **kept)

    return step, init


def trained(values: dict[str, Any]) -> Trained:
    """The generator of a run's config.json."""
    config = config_from_json(Config, values)

    def test(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
        digits = load("mnist", "test", data_dir=data_dir, embedded_only=data_dir is None)
        return digits.images, digits.labels

    return Trained(networks(config)[0], config.latent_size, 0, test)


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__, commands=commands(NAME, trained))
