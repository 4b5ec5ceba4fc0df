"""A GAN of Transformers: self-attention in both networks, trained with gradient penalties through the attention.

    python experiments/transformer_gan.py                                     # the embedded 5,000 digits
    python experiments/transformer_gan.py --data-dir DIR                      # all 60,000: half an hour on a CPU core
    python experiments/transformer_gan.py --preset hybrid --data-dir DIR      # convolutional discriminator
    python experiments/transformer_gan.py --preset convolutional --data-dir DIR   # both convolutional, same time
    python experiments/transformer_gan.py --conditional                       # class-conditional
    python experiments/transformer_gan.py --generator convolutional --attention   # SAGAN's block between convolutions
    python experiments/transformer_gan.py --preset cifar10 --data-dir DIR --platform gpu
    python experiments/transformer_gan.py sample --count 100 --label 7        # with a finished run; also: invert

A token is a patch of 4x4 pixels; a digit has 49. The loss is R3GAN's (arXiv 2501.05441), relativistic with R1 and R2.
The gradients of R1 and R2 are second derivatives of attention, which `jaxai.attention` computes in O(T) memory.
MNIST-FD of the presets ``default``, ``hybrid`` and ``convolutional``, of equal size and training time: 4.33, 0.54, 1.93
(real digits 0.20). Published FID on CIFAR-10: TransGAN (arXiv 2102.07074) 9.26, ViTGAN (arXiv 2107.04589) 6.66.
"""

from dataclasses import dataclass, replace
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
from jaxai.nn import TransformerConfig
from jaxai.ops.pixels import to_signed
from jaxai.run import Run, parameter_count
from jaxai.train import Adam, Keys, Result, optimizer
from jaxai.typing import Array, PyTree

NAME = "transformer_gan"
CURVES = [["discriminator_loss", "generator_loss"], ["real_logit", "fake_logit"], ["penalty"], ["quick_mnist_fd"]]
IMAGES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
CLASSES = 10  # of both data sets
Kind = Literal["transformer", "convolutional"]


@dataclass(frozen=True, kw_only=True)
class Config(gan.GanConfig):
    """Options of this experiment."""

    dataset: Literal["mnist", "cifar10"] = "mnist"
    generator: Kind = "transformer"
    discriminator: Kind = "transformer"
    conditional: bool = False
    """Condition both networks on the class."""
    transformer: TransformerConfig = TransformerConfig(
        embed_dim=64, num_layers=3, num_heads=4, hidden_dim=128, position="learned", norm="rms", init_std=0.05
    )
    patch: int = 4
    """Side, in pixels, of the square patch that is a token."""
    attention: bool = False
    """Add an attention block at half of the resolution to convolutional networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transformer.position != "learned" or self.transformer.dropout:
            raise UserError("--transformer.position must be learned, a patch has a row and a column, and dropout 0")
        side = IMAGES[self.dataset][0]
        if self.patch < 1 or side % self.patch:
            raise UserError(f"--patch {self.patch} does not divide images of {side}x{side}")
        if self.attention and "convolutional" not in (self.generator, self.discriminator):
            raise UserError("--attention is for convolutional networks: give --generator or --discriminator too")


DEFAULT = Config(
    hidden=256,
    steps=6000,
    decay_steps=6000,
    optimizer=Adam(learning_rate=1e-3, beta1=0.0, beta2=0.99, warmup=200, final_rate=0.1),
    eval_every=500,
)
HYBRID = replace(DEFAULT, discriminator="convolutional", hidden=144, steps=14_400, decay_steps=14_400)
PRESETS = {
    "default": DEFAULT,
    # hybrid and convolutional: 1.06 million parameters in both networks, as in default, and the same CPU time
    "hybrid": HYBRID,
    "convolutional": replace(HYBRID, generator="convolutional", hidden=156, steps=21_600, decay_steps=21_600),
    "cifar10": replace(
        DEFAULT,
        dataset="cifar10",
        transformer=replace(DEFAULT.transformer, embed_dim=384, num_layers=6, num_heads=6, hidden_dim=0),
        patch=2,
        hidden=512,
        latent_size=128,
        dtype="bfloat16",
        penalty_weight=0.5,
        final_penalty_weight=0.05,
        conditional=True,
        batch_size=256,
        steps=100_000,
        decay_steps=100_000,
        optimizer=Adam(learning_rate=2e-4, beta1=0.0, beta2=0.99, warmup=1000, final_rate=0.25),
        ema_half_life=200_000.0,
        eval_every=5000,
    ),
    "debug": replace(
        DEFAULT,
        transformer=replace(DEFAULT.transformer, embed_dim=16, num_layers=1, num_heads=2, hidden_dim=16, init_std=0.02),
        hidden=16,
        batch_size=16,
        steps=40,
        decay_steps=40,
        optimizer=replace(DEFAULT.optimizer, warmup=0),
        eval_every=20,
    ),
}


def build(config: Config) -> experiment.Task:
    """The training on images, evaluated by pictures and, for digits, the MNIST-FD."""
    train, test = experiment.splits(NAME, config, config.dataset)
    generator, discriminator = networks(config)
    sampler = gan.Sampler(generator, config.latent_size, Keys(config.seed), CLASSES if config.conditional else 0)
    evaluation = gan.digit_evaluation if config.dataset == "mnist" else gan.sample_evaluation

    def finish(run: Run, result: Result) -> dict[str, Any]:
        gan.save_pictures(run, sampler, result.state, CURVES)
        summary: dict[str, Any] = {"images_seen": result.step * config.batch_size}
        summary["discriminator_parameters"] = parameter_count(result.state.discriminator)
        if config.dataset == "mnist":
            summary |= gan.digit_scores(sampler, result.state, train.images, test.images)
        return summary

    return experiment.Task(
        identity=train.identity(),
        source=train.source,
        batches=partial(batches, train, config.batch_size, seed=config.seed),
        batch_size=config.batch_size,
        trainer=trainer(config, generator, discriminator),
        evaluate=evaluation(config, sampler, gan.reference_images(train.images, test.images)),
        eval_every=config.eval_every,
        finish=finish,
        report=gan.print_report,
        show=["discriminator_loss", "generator_loss"],
    )


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator."""
    common: dict[str, Any] = {"hidden": config.hidden, "dtype": jnp.dtype(config.dtype)}
    common["classes"] = CLASSES if config.conditional else 0
    maps = common | {"widths": config.widths, "blocks": config.blocks, "attention": config.attention}
    tokens = common | {"config": config.transformer, "patch": config.patch}
    shape = IMAGES[config.dataset]
    generators = {
        "transformer": gan.TransformerGenerator(image_shape=shape, **tokens),
        "convolutional": gan.Generator(image_shape=shape, **maps),
    }
    discriminators = {"transformer": gan.TransformerDiscriminator(**tokens), "convolutional": gan.Discriminator(**maps)}
    return generators[config.generator], discriminators[config.discriminator]


def trainer(config: Config, generator: nn.Module, discriminator: nn.Module) -> gan.Gan:
    """The trainer of both networks on batches of pixels and labels."""
    tx = optimizer(config.optimizer, config.decay_steps)
    no_labels = [jnp.zeros(2, jnp.int32)] if config.conditional else []

    def labels(batch: gan.Batch, count: int) -> list[Array]:
        """The labels of ``count`` examples, real and generated alternating; empty for unconditional networks."""
        return [jnp.repeat(batch["label"], count // config.batch_size)] if config.conditional else []

    def generate(params: PyTree, key: Array, batch: gan.Batch) -> Array:
        latents = jax.random.normal(key, (config.batch_size, config.latent_size))
        return gan.apply(generator, params, latents, *labels(batch, config.batch_size))

    return gan.Gan(
        init_generator=gan.init_fn(generator, jnp.zeros((2, config.latent_size)), *no_labels),
        init_discriminator=gan.init_fn(discriminator, jnp.zeros((2, *IMAGES[config.dataset])), *no_labels),
        real=lambda batch: to_signed(batch["image"]),
        generate=generate,
        discriminate=lambda params, x, batch: gan.apply(discriminator, params, x, *labels(batch, len(x))),
        loss=gan.LOSSES[config.loss],
        penalty=config.weighted_penalty,
        txs=(tx, tx),
        ema_half_life=config.ema_half_life,
    )


def trained_generator(config: Config) -> gan.TrainedGenerator:
    """The generator for a finished run's config."""

    def test_images(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
        digits = not data_dir and config.dataset == "mnist"
        found = load(config.dataset, "test", data_dir=data_dir, embedded_only=digits)
        return found.images, found.labels

    generator, _ = networks(config)
    return gan.TrainedGenerator(generator, config.latent_size, CLASSES if config.conditional else 0, test_images)


if __name__ == "__main__":
    commands = gan.generator_commands(NAME, Config, trained_generator)
    experiment.run(NAME, PRESETS, build, __doc__, commands)
