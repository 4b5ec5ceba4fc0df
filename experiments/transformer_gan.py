"""A GAN of Transformers: self-attention in both networks, trained with gradient penalties through the attention.

    python experiments/transformer_gan.py                                     # the embedded 5,000 digits
    python experiments/transformer_gan.py --data-dir DIR                      # all 60,000: half an hour on a CPU core
    python experiments/transformer_gan.py --preset hybrid --data-dir DIR      # a Transformer draws, convolutions judge
    python experiments/transformer_gan.py --preset convolutional --data-dir DIR   # convolutions, in the same time
    python experiments/transformer_gan.py --conditional                       # ... that draws the digit asked for
    python experiments/transformer_gan.py --generator convolutional --attention   # SAGAN's block between convolutions
    python experiments/transformer_gan.py --preset cifar10 --data-dir DIR --platform gpu
    python experiments/transformer_gan.py sample --count 100 --label 7        # by a finished run; invert

A token is a patch of 4x4 pixels, 49 for a digit. The loss is R3GAN's (arXiv 2501.05441), relativistic with R1 and R2,
whose gradients are second derivatives of attention: `jaxai.attention` has them in O(T) memory
(`benchmarks/transformer_gan.py` shows 4,096 tokens). MNIST-FD of the presets ``default``, ``hybrid`` and
``convolutional``, of equal size and after the same time: 4.33, 0.54, 1.93 (real digits 0.20). No published GAN of
Transformers is scored on digits; on CIFAR-10 TransGAN (arXiv 2102.07074) has an FID of 9.26, ViTGAN (arXiv 2107.04589)
of 6.66.
The run's folder ends with samples.png, training.gif, interpolation.png, curves.png, summary.json, model.safetensors and
README.md, a model card.
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
from jaxai.gan.collapse import CollapseConfig
from jaxai.gan.commands import Trained, commands
from jaxai.gan.losses import LOSSES
from jaxai.gan.networks import Discriminator, Generator
from jaxai.gan.penalties import r1_r2
from jaxai.gan.report import digit_scores, digit_snapshot, finish_pictures, reference, report, save_model, snapshot
from jaxai.gan.sampler import Sampler
from jaxai.gan.state import GanState, init_fn, init_gan_state
from jaxai.gan.step import apply, from_noise, gan_step
from jaxai.gan.transformer_networks import TransformerDiscriminator, TransformerGenerator
from jaxai.metrics.digits import preprocess
from jaxai.nn.transformer import TransformerConfig
from jaxai.run.folder import began_embedded, config_from_json, open_run
from jaxai.run.weights import parameter_count
from jaxai.train.compiled_step import Step
from jaxai.train.loop import Every, fit
from jaxai.train.optim import Adam, cosine, optimizer
from jaxai.typing import Array, PyTree

NAME = "transformer_gan"
CURVES = [["discriminator_loss", "generator_loss"], ["real_logit", "fake_logit"], ["penalty"], ["quick_mnist_fd"]]
IMAGES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
CLASSES = 10  # of both data sets
Kind = Literal["transformer", "convolutional"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CollapseConfig):
    """Options of this experiment."""

    dataset: Literal["mnist", "cifar10"] = "mnist"
    generator: Kind = "transformer"
    discriminator: Kind = "transformer"
    conditional: bool = False
    """Whether both networks are told the class."""
    transformer: TransformerConfig = TransformerConfig(
        embed_dim=64, num_layers=3, num_heads=4, hidden_dim=128, position="learned", norm="rms", init_std=0.05
    )
    """Of the blocks."""
    patch: int = 4
    """Pixels along the side of a token's square."""
    widths: tuple[int, ...] = (64, 32)
    """Channels at a quarter and at half of the resolution, of convolutional networks."""
    blocks: int = 0
    """Residual blocks at each of those."""
    attention: bool = False
    """Whether convolutional networks have an attention block at half of the resolution."""
    hidden: int = 256
    """Width of the dense layer next to the latents and next to the logit."""
    latent_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters are float32."""
    penalty: float = 1.0
    """Weight gamma of R1 and R2 at the first step."""
    final_penalty: float = 0.1
    """Their weight from step decay_steps on, along a cosine."""
    decay_steps: int = 6000
    """Steps over which penalty and learning rate take their course."""
    batch_size: int = 64
    optimizer: Adam = Adam(learning_rate=1e-3, beta1=0.0, beta2=0.99, warmup=200, final_rate=0.1)
    ema_half_life: float = 10_000.0
    """Half-life, in images, of the generator's moving average that draws the samples."""
    eval_every: int = 500
    """Steps between two sample grids, for digits each with a quick MNIST-FD."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "batch_size", "latent_size", "hidden", "eval_every", "decay_steps")
        self.check_at_least(0, "blocks", "penalty", "final_penalty")
        if not self.ema_half_life > 0:
            raise ValueError(f"--ema-half-life must be positive, got {self.ema_half_life}")
        if len(self.widths) != 2 or min(self.widths) < 1:
            raise ValueError(f"--widths must be two positive numbers, got {self.widths}")
        if self.transformer.position != "learned" or self.transformer.dropout:
            raise ValueError("--transformer.position must be learned, a patch has a row and a column, and dropout 0")
        side = IMAGES[self.dataset][0]
        if self.patch < 1 or side % self.patch:
            raise ValueError(f"--patch {self.patch} does not divide images of {side}x{side}")
        if self.attention and "convolutional" not in (self.generator, self.discriminator):
            raise ValueError("--attention is for convolutional networks: give --generator or --discriminator too")


PRESETS = {
    "default": Config(steps=6000),
    # these two: as many parameters in both networks together as the default's, 1.06 million, and the same time on a CPU
    "hybrid": Config(discriminator="convolutional", hidden=144, steps=14_400, decay_steps=14_400),
    "convolutional": Config(
        generator="convolutional", discriminator="convolutional", hidden=156, steps=21_600, decay_steps=21_600
    ),
    "cifar10": Config(
        dataset="cifar10",
        transformer=TransformerConfig(
            embed_dim=384, num_layers=6, num_heads=6, position="learned", norm="rms", init_std=0.05
        ),
        patch=2,
        hidden=512,
        latent_size=128,
        dtype="bfloat16",
        penalty=0.5,
        final_penalty=0.05,
        conditional=True,
        batch_size=256,
        steps=100_000,
        decay_steps=100_000,
        optimizer=Adam(learning_rate=2e-4, beta1=0.0, beta2=0.99, warmup=1000, final_rate=0.25),
        ema_half_life=200_000.0,
        eval_every=5000,
    ),
    "debug": Config(
        transformer=TransformerConfig(
            embed_dim=16, num_layers=1, num_heads=2, hidden_dim=16, position="learned", norm="rms"
        ),
        hidden=16,
        batch_size=16,
        steps=40,
        decay_steps=40,
        optimizer=dataclasses.replace(Config.optimizer, warmup=0),
        eval_every=20,
    ),
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
    draw = Sampler(generator, config.latent_size, config.seed, CLASSES if config.conditional else 0)
    look = (digit_snapshot if config.dataset == "mnist" else snapshot)(
        config, run, draw, reference(train.images, test.images)
    )
    result = fit(
        step,
        init,
        input_batches,
        config,
        run=run,
        mesh=mesh,
        every=[Every(config.eval_every, look)],
        show=["discriminator_loss", "generator_loss"],
    )
    finish_pictures(run, draw, result.state, CURVES)
    steps, state = int(result.state.step), result.state
    summary = {
        "steps": steps,
        "images_seen": steps * config.batch_size,
        "data": train.source,
        **{f"{name}_parameters": parameter_count(getattr(state, name)) for name in ("generator", "discriminator")},
        "compile_seconds": round(result.compile_seconds, 1),
        "train_seconds": round(result.train_seconds, 1),
        **(digit_scores(draw, state, train.images, test.images) if config.dataset == "mnist" else {}),
    }
    save_model(run, state, summary)
    run.write_summary(summary)
    report(run, summary)


def datasets(config: Config) -> tuple[ImageDataset, ImageDataset]:
    """Train and test; a run that began with an embedded set goes on with it, network or not."""
    train = load(config.dataset, "train", data_dir=config.data_dir, embedded_only=began_embedded(NAME, config))
    return train, load(config.dataset, "test", data_dir=config.data_dir, embedded_only=train.embedded)


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator."""
    common: dict[str, Any] = {
        "hidden": config.hidden,
        "classes": CLASSES if config.conditional else 0,
        "dtype": jnp.dtype(config.dtype),
    }
    maps = common | {"widths": config.widths, "blocks": config.blocks, "attention": config.attention}
    tokens = common | {"shape": config.transformer, "patch": config.patch}
    shape = IMAGES[config.dataset]
    generators = {
        "transformer": TransformerGenerator(image_shape=shape, **tokens),
        "convolutional": Generator(image_shape=shape, **maps),
    }
    discriminators = {"transformer": TransformerDiscriminator(**tokens), "convolutional": Discriminator(**maps)}
    return generators[config.generator], discriminators[config.discriminator]


def training(config: Config, generator: nn.Module, discriminator: nn.Module) -> tuple[Step, Callable[[], GanState]]:
    """The training step on a batch of pixels and labels, and the function that makes the first state."""
    tx = optimizer(config.optimizer, config.decay_steps)
    weight = partial(cosine, start=config.penalty, end=config.final_penalty, decay_steps=config.decay_steps)

    def step(state: GanState, batch: dict[str, Array]) -> tuple[GanState, dict[str, Array]]:
        images, labels = preprocess(batch["image"]), [batch["label"]] if config.conditional else []

        def discriminate(params: PyTree, x: Array) -> Array:
            """Of images alone, or of real and generated ones in turn."""
            return apply(discriminator, params, x, *(jnp.repeat(label, len(x) // len(label)) for label in labels))

        return gan_step(
            state,
            images,
            generate=from_noise(generator, config.latent_size, len(images), *labels),
            discriminate=discriminate,
            loss=LOSSES["relativistic"],
            penalty=(r1_r2, weight),
            ema_half_life=config.ema_half_life,
            txs=(tx, tx),
        )

    def init() -> GanState:
        labels = [jnp.zeros(2, jnp.int32)] if config.conditional else []
        latents, images = jnp.zeros((2, config.latent_size)), jnp.zeros((2, *IMAGES[config.dataset]))
        first = init_fn(generator, latents, *labels), init_fn(discriminator, images, *labels)
        return init_gan_state(jax.random.key(config.seed), *first, txs=(tx, tx), keep_ema=True)

    return step, init


def trained(values: dict[str, Any]) -> Trained:
    """The generator of a run's config.json."""
    config = config_from_json(Config, values)

    def test(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
        embedded = not data_dir and config.dataset == "mnist"
        found = load(config.dataset, "test", data_dir=data_dir, embedded_only=embedded)
        return found.images, found.labels

    return Trained(networks(config)[0], config.latent_size, CLASSES if config.conditional else 0, test)


if __name__ == "__main__":
    cli.run(main, PRESETS, __doc__, commands=commands(NAME, trained))
