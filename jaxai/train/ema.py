"""Exponential moving average of parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jaxai.typing import PyTree


def ema_decay(step: ArrayLike, batch_size: int, half_life: float, ramp_up: float = 0.05) -> Array:
    """Decay per step of a moving average whose half-life is given in images.

    decay = 0.5 ** (batch_size / min(half_life, ramp_up * images seen)): early in training the half-life is shorter, so
    that the initial weights are soon forgotten (StyleGAN2, arXiv 1912.04958).
    """
    images_seen = (step + 1.0) * batch_size
    return 0.5 ** (batch_size / jnp.minimum(half_life, ramp_up * images_seen))


def update_ema(ema_params: PyTree, params: PyTree, decay: ArrayLike) -> PyTree:
    """decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda a, p: p + decay * (a - p), ema_params, params)
