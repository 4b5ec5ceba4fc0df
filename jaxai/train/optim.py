"""Optimisers and schedules from a config, and the moving average of parameters."""

import dataclasses
import math

import jax
import optax
from jaxtyping import Array, ArrayLike

from jaxai.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam (arXiv 1412.6980), with optional warm-up, cosine decay, and decoupled weight decay (arXiv 1711.05101)."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    warmup: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay_steps: int = 0
    """Steps, counted from 0, at whose end a cosine has taken the learning rate to final_rate; 0: no decay."""
    final_rate: float = 0.0
    """The learning rate at the end of the decay, as a share of learning_rate."""
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 must lie in [0, 1), got {self.beta1} and {self.beta2}")
        if self.decay_steps and self.decay_steps <= self.warmup:
            raise ValueError(f"decay_steps must exceed warmup, got {self.decay_steps} and {self.warmup}")


def schedule(config: Adam) -> optax.Schedule:
    """The learning rate at a step: linear warm-up, then constant or a cosine to its final share."""
    rate = config.learning_rate
    if config.decay_steps:
        return optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup else rate, rate, config.warmup, config.decay_steps, rate * config.final_rate
        )
    if config.warmup:
        return optax.linear_schedule(0.0, rate, config.warmup)
    return optax.constant_schedule(rate)


def optimizer(config: Adam) -> optax.GradientTransformation:
    """The optax transformation of a config."""
    if config.weight_decay:
        return optax.adamw(schedule(config), config.beta1, config.beta2, weight_decay=config.weight_decay)
    return optax.adam(schedule(config), config.beta1, config.beta2)


def cosine(step: ArrayLike, start: float, end: float, horizon: int) -> Array:
    """From ``start`` at step 0 to ``end`` at step ``horizon`` along half a cosine, then constant."""
    share = jax.numpy.clip(step / max(horizon, 1), 0.0, 1.0)
    return end + (start - end) * 0.5 * (1.0 + jax.numpy.cos(math.pi * share))


def average_decay(step: ArrayLike, batch_size: int, half_life: float, ramp_up: float = 0.05) -> Array:
    """Decay per step of a moving average whose half-life is counted in images.

    decay = 0.5 ** (batch_size / min(half_life, ramp_up * images seen)): early on the average forgets faster, so that it
    does not carry the initial weights along (StyleGAN2, arXiv 1912.04958).
    """
    images_seen = (step + 1.0) * batch_size
    return 0.5 ** (batch_size / jax.numpy.minimum(half_life, ramp_up * images_seen))


def update_average(average: PyTree, params: PyTree, decay: ArrayLike) -> PyTree:
    """decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda a, p: p + decay * (a - p), average, params)
