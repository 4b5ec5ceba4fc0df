"""Trainer of a generator and a discriminator, and the options that GAN experiments share."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Key

from jaxai.config import Training
from jaxai.errors import UserError
from jaxai.gan.collapse import CollapseConfig
from jaxai.gan.losses import Loss
from jaxai.gan.penalties import PENALTIES, Penalty, Values
from jaxai.gan.sampler import sampling_params
from jaxai.gan.state import GanState, Optimizers, init_gan_state
from jaxai.gan.step import gan_step
from jaxai.train.keys import Keys
from jaxai.train.optim import Adam, cosine
from jaxai.typing import Array, PyTree, Samples

Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gan:
    """Trainer of a generator and a discriminator with `gan_step`; fields not listed here are its arguments.

    ``init_generator`` and ``init_discriminator`` map a key to parameters (`init_fn`). ``real(batch)`` returns the real
    examples [B, ...] of a batch, ``generate(params, key, batch)`` as many generated ones, ``discriminate(params,
    examples, batch)`` their logits [B], ``reconstruction(generated, batch)`` a further generator loss [].
    """

    init_generator: Callable[[Array], PyTree]
    init_discriminator: Callable[[Array], PyTree]
    real: Callable[[Batch], Samples]
    generate: Callable[[PyTree, Key[Array, ""], Batch], Samples]
    discriminate: Callable[[PyTree, Samples, Batch], Values]
    loss: Loss
    txs: Optimizers
    penalty: tuple[Penalty, Callable[[Array], Array]] | None = None
    reconstruction: Callable[[Samples, Batch], Array] | None = None
    augment_fn: Callable[[Samples, Key[Array, ""], GanState], Samples] | None = None
    unroll: int = 0
    unroll_rate: float = 0.1
    ada_images: float = 0.0
    ema_half_life: float = 0.0

    def init(self, keys: Keys) -> GanState:
        """The state before the first step, with a moving average if ``ema_half_life`` is positive."""
        return init_gan_state(
            keys,
            self.init_generator,
            self.init_discriminator,
            txs=self.txs,
            keep_ema=self.ema_half_life > 0,
            adaptive=self.ada_images > 0,
        )

    def step(self, state: GanState, batch: Batch) -> tuple[GanState, dict[str, Array]]:
        """One update of both networks."""
        reconstruction = self.reconstruction
        return gan_step(
            state,
            self.real(batch),
            generate=lambda params, key: self.generate(params, key, batch),
            discriminate=lambda params, examples: self.discriminate(params, examples, batch),
            loss=self.loss,
            txs=self.txs,
            penalty=self.penalty,
            reconstruction=None if reconstruction is None else lambda generated: reconstruction(generated, batch),
            augment_fn=self.augment_fn,
            unroll=self.unroll,
            unroll_rate=self.unroll_rate,
            ada_images=self.ada_images,
            ema_half_life=self.ema_half_life,
        )

    def params(self, state: GanState) -> PyTree:
        """The generator's parameters for sampling."""
        return sampling_params(state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GanConfig(CollapseConfig):
    """Options of experiments that train a generator and a discriminator of images."""

    widths: tuple[int, ...] = (64, 32)
    """Channels at the lowest resolution, at twice that, ... (convolutional networks); each doubles the resolution."""
    hidden: int = 512
    """Width of the generator's first and the discriminator's last hidden dense layer."""
    blocks: int = 0
    """Residual blocks at each resolution (convolutional networks)."""
    latent_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations; parameters are float32."""
    loss: Literal["non_saturating", "relativistic"] = "relativistic"
    penalty: Literal["none", "r1", "r2", "r1_r2"] = "r1_r2"
    """Gradient penalty on the discriminator."""
    penalty_weight: float = 1.0
    """Its weight at the first step."""
    final_penalty_weight: float = 0.1
    """Its weight from step decay_steps on, reached by cosine decay."""
    decay_steps: int = 4500
    """Steps over which the penalty's weight and the learning rates decay."""
    batch_size: int = 64
    optimizer: Adam = Adam(learning_rate=2e-3, beta1=0.0, beta2=0.99, final_rate=0.1)
    ema_half_life: float = 10_000.0
    """Half-life, in images, of the moving average of the generator that is used for sampling; 0: no average."""
    eval_every: int = 250
    """Steps between two evaluations, each with a grid of samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "hidden", "latent_size", "decay_steps", "batch_size", "eval_every")
        self.check_at_least(0, "blocks", "penalty_weight", "final_penalty_weight", "ema_half_life")
        if not 1 <= len(self.widths) <= 2 or min(self.widths) < 1:
            raise UserError(f"--widths must be one or two positive numbers (28 halves twice), got {self.widths}")

    @property
    def weighted_penalty(self) -> tuple[Penalty, Callable[[Array], Array]] | None:
        """The penalty and its weight as a function of the step, for `Gan`; None for ``none``."""
        if self.penalty == "none":
            return None
        ends: dict[str, Any] = {"start": self.penalty_weight, "end": self.final_penalty_weight}
        return PENALTIES[self.penalty], partial(cosine, **ends, decay_steps=self.decay_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToImageConfig(Training):
    """Options of experiments that train an image-to-image network and a discriminator."""

    width: int = 32
    """Channels of the image-to-image network."""
    blocks: int = 2
    """Residual blocks of the image-to-image network."""
    widths: tuple[int, ...] = (64, 32)
    """Channels of the discriminator at a quarter and at half of the resolution."""
    hidden: int = 128
    """Width of the discriminator's dense layer."""
    penalty_weight: float = 1.0
    """Weight of the R1 and R2 gradient penalties."""
    batch_size: int = 32
    optimizer: Adam = Adam(learning_rate=1e-3, beta1=0.0, beta2=0.99, final_rate=0.1)
    ema_half_life: float = 5_000.0
    """Half-life, in images, of the moving average of the parameters, which evaluations use."""
    decay_steps: int = 600
    """Steps over which the learning rates decay."""
    eval_every: int = 100
    """Steps between two evaluations, each with a picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "width", "hidden", "batch_size", "decay_steps", "eval_every")
        self.check_at_least(0, "blocks", "penalty_weight")
        self.check_positive("ema_half_life")
        if len(self.widths) != 2 or min(self.widths) < 1:
            raise UserError(f"--widths must be two positive numbers, got {self.widths}")

    @property
    def weighted_penalty(self) -> tuple[Penalty, Callable[[Array], Array]]:
        """The sum of R1 and R2, and its constant weight, for `Gan`."""
        return PENALTIES["r1_r2"], lambda step: jnp.float32(self.penalty_weight)
