"""A GAN that generates handwritten digits, with scores of its samples.

    python experiments/gan_mnist.py                                # the embedded 5,000 digits, three CPU minutes
    python experiments/gan_mnist.py --data-dir DIR                 # all 60,000 (idx files, or prepared with tfds)
    python experiments/gan_mnist.py --preset article               # the Keras baseline, repaired
    python experiments/gan_mnist.py --preset gpu --platform gpu    # all 60,000, larger, bfloat16 activations
    python experiments/gan_mnist.py sample --count 100 --truncation 0.7   # sample from a finished run
    python experiments/gan_mnist.py invert                         # ... reconstruct images that it has not seen

Preset ``default``: the R3GAN loss (arXiv 2501.05441): relativistic pairing with R1 and R2, no normalisation.

Preset ``article`` keeps the Keras baseline's layers, losses, Adam 1e-4 and batches of 32, with the repairs it needs to
run: a dense 7x7x128 layer and a reshape before the first transposed convolution (the baseline feeds it a vector); one
logit after the discriminator's 128 sigmoids (the baseline ends there, but its loss needs one probability per image);
cross-entropies computed from the logit, since log(sigmoid) overflows in float32.

The run's folder (runs/gan_mnist/PRESET) ends up with samples.png, training.gif, interpolation.png, curves.png,
summary.json, model.safetensors and README.md, a model card. The same command resumes an interrupted run.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxai import experiment, gan
from jaxai.data import batches, load
from jaxai.errors import UserError
from jaxai.ops.pixels import to_signed
from jaxai.run.folder import Run
from jaxai.train import Adam, Keys, Result, optimizer
from jaxai.typing import Array, PyTree

NAME = "gan_mnist"
CURVES = [["discriminator_loss", "generator_loss"], ["real_logit", "fake_logit"], ["penalty"], ["quick_mnist_fd"]]
"""The panels of curves.png."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gan.GanConfig):
    """Options of this experiment."""

    network: Literal["article", "residual"] = "residual"
    augment: tuple[gan.Policy, ...] = ()
    """DiffAugment: transformations of the discriminator's inputs, real and generated. For grey digits: brightness,
    contrast, translation, cutout."""
    ada_images: float = 0.0
    """Images over which ADA may move the augmentation probability from 0 to 1; 0 disables adaptation."""
    full_data: bool = False
    """Refuse the embedded digits: a large network memorises 4,500 images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "ada_images")
        if "saturation" in self.augment:
            raise UserError("--augment saturation needs colour, digits are grey: leave it out")
        if self.ada_images and not self.augment:
            raise UserError("--ada-images has nothing to adapt: give --augment too")


PRESETS = {
    "default": Config(
        widths=(48, 24),
        hidden=256,
        penalty_weight=0.5,
        final_penalty_weight=0.5,
        batch_size=32,
        steps=8000,
        decay_steps=8000,
        eval_every=1000,
    ),
    "article": Config(
        network="article",
        latent_size=100,
        loss="non_saturating",
        penalty="none",
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


def build(config: Config) -> experiment.Task:
    """The training on MNIST, evaluated by pictures and the MNIST-FD."""
    train, test = experiment.splits(NAME, config, "mnist")
    if config.full_data and train.embedded:
        raise UserError(
            f"--preset {config.preset} needs all of MNIST: pass --data-dir, or --no-full-data to do without"
        )
    generator, discriminator = networks(config)
    sampler = gan.Sampler(generator, config.latent_size, Keys(config.seed))

    def finish(run: Run, result: Result) -> dict[str, Any]:
        gan.save_pictures(run, sampler, result.state, CURVES)
        scores = gan.digit_scores(sampler, result.state, train.images, test.images)
        return {"images_seen": result.step * config.batch_size, **scores}

    return experiment.Task(
        identity=train.identity(),
        source=train.source,
        batches=partial(batches, train, config.batch_size, seed=config.seed),
        batch_size=config.batch_size,
        trainer=trainer(config, generator, discriminator),
        evaluate=gan.digit_evaluation(config, sampler, gan.reference_images(train.images, test.images)),
        eval_every=config.eval_every,
        finish=finish,
        report=gan.print_report,
        show=["discriminator_loss", "generator_loss"],
    )


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator."""
    if config.network == "article":
        return gan.ArticleGenerator(), gan.ArticleDiscriminator()
    sizes: dict[str, Any] = {"widths": config.widths, "hidden": config.hidden, "blocks": config.blocks}
    sizes["dtype"] = jnp.dtype(config.dtype)
    return gan.Generator(**sizes), gan.Discriminator(**sizes)


def trainer(config: Config, generator: nn.Module, discriminator: nn.Module) -> gan.Gan:
    """The trainer of both networks on batches of pixels."""
    tx = optimizer(config.optimizer, config.decay_steps)

    def generate(params: PyTree, key: Array, batch: gan.Batch) -> Array:
        return gan.apply(generator, params, jax.random.normal(key, (config.batch_size, config.latent_size)))

    def augment(images: Array, key: Array, state: gan.GanState) -> Array:
        probability = 1.0 if state.strength is None else state.strength
        return gan.augment(images, key, config.augment, probability, fill=-1.0)

    return gan.Gan(
        init_generator=gan.init_fn(generator, jnp.zeros((1, config.latent_size))),
        init_discriminator=gan.init_fn(discriminator, jnp.zeros((2, 28, 28, 1))),
        real=lambda batch: to_signed(batch["image"]),
        generate=generate,
        discriminate=lambda params, images, batch: gan.apply(discriminator, params, images),
        loss=gan.LOSSES[config.loss],
        penalty=config.weighted_penalty,
        txs=(tx, tx),
        augment_fn=augment if config.augment else None,
        ada_images=config.ada_images,
        ema_half_life=config.ema_half_life,
    )


def trained_generator(config: Config) -> gan.TrainedGenerator:
    """The generator for a finished run's config."""

    def test_images(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
        digits = load("mnist", "test", data_dir=data_dir, embedded_only=data_dir is None)
        return digits.images, digits.labels

    return gan.TrainedGenerator(networks(config)[0], config.latent_size, 0, test_images)


if __name__ == "__main__":
    commands = gan.generator_commands(NAME, Config, trained_generator)
    experiment.run(NAME, PRESETS, build, __doc__, commands)
