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
    final_rate: float = 1.0
    """The learning rate at the horizon, as a share of learning_rate; a cosine leads there from the warm-up's end."""
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 must lie in [0, 1), got {self.beta1} and {self.beta2}")
        if not (self.warmup >= 0 and self.final_rate >= 0 and self.weight_decay >= 0):
            raise ValueError("warmup, final_rate and weight_decay must be 0 or more")


def schedule(config: Adam, horizon: int) -> optax.Schedule:
    """The learning rate at a step: linear warm-up, then a cosine to its final share at ``horizon``, then constant."""
    rate, start = config.learning_rate, 0.0 if config.warmup else config.learning_rate
    if horizon <= config.warmup:
        raise ValueError(f"horizon {horizon} must exceed warmup {config.warmup}")
    return optax.warmup_cosine_decay_schedule(start, rate, config.warmup, horizon, rate * config.final_rate)


def optimizer(config: Adam, horizon: int) -> optax.GradientTransformation:
    """The optax transformation of a config whose learning rate takes its course over ``horizon`` steps."""
    rate = schedule(config, horizon)
    if config.weight_decay:
        return optax.adamw(rate, config.beta1, config.beta2, weight_decay=config.weight_decay)
    return optax.adam(rate, config.beta1, config.beta2)


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
