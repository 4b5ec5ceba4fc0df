"""Samples from a generator, always from the same latents."""

from functools import partial

import jax
import numpy as np
from flax import linen as nn

from jaxai.gan.state import GanState
from jaxai.gan.step import apply
from jaxai.ops.batched import map_batches
from jaxai.train.keys import Keys
from jaxai.typing import PyTree


def sampling_params(state: GanState) -> PyTree:
    """The generator's parameters that draw: their moving average where there is one."""
    return state.generator if state.ema_params is None else state.ema_params


class Sampler:
    """Draws examples from a state; with ``classes`` of the classes 0, 1, ... in turn."""

    def __init__(self, generator: nn.Module, latent_size: int, keys: Keys, classes: int = 0) -> None:
        self._apply = jax.jit(partial(apply, generator))
        self._latent_size, self.classes = latent_size, classes
        self._key = keys.sampling

    def latents(self, count: int, purpose: int) -> np.ndarray:
        """float32 [count, latent_size], the same for the same purpose."""
        key = jax.random.fold_in(self._key, purpose)
        return np.asarray(jax.random.normal(key, (count, self._latent_size)))

    def from_latents(self, state: GanState, latents: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, ...] for n latents.

        ``labels`` [n] are looked at by a generator with classes; without them these come in turn.
        """
        inputs = [latents]
        if self.classes:
            labels = np.arange(len(latents)) if labels is None else labels
            inputs.append(labels.astype(np.int32) % self.classes)
        params = sampling_params(state)
        return map_batches(lambda rows: self._apply(params, *rows), inputs)

    def __call__(self, state: GanState, count: int, purpose: int = 1) -> np.ndarray:
        """Examples from the first ``count`` latents of always the same noise, float32 [count, ...]."""
        return self.from_latents(state, self.latents(-(-count // 100) * 100, purpose))[:count]
