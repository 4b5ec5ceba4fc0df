"""Samples from a generator with fixed latents."""

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
    """The parameters to sample with: the generator's moving average if there is one, else its own."""
    return state.generator if state.ema_params is None else state.ema_params


class Sampler:
    """Generate examples from a state; a generator with ``classes`` cycles through the labels 0, 1, ... by default."""

    def __init__(self, generator: nn.Module, latent_size: int, keys: Keys, classes: int = 0) -> None:
        self._apply = jax.jit(partial(apply, generator))
        self._latent_size, self.classes = latent_size, classes
        self._key = keys.sampling

    def latents(self, count: int, purpose: int) -> np.ndarray:
        """Standard normal latents, float32 [count, latent_size]; equal arguments give equal latents."""
        key = jax.random.fold_in(self._key, purpose)
        return np.asarray(jax.random.normal(key, (count, self._latent_size)))

    def from_latents(self, state: GanState, latents: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Generate examples, float32 [n, ...], from n latents.

        ``labels`` [n] are ignored without classes; by default they cycle through the classes.
        """
        inputs = [latents]
        if self.classes:
            labels = np.arange(len(latents)) if labels is None else labels
            inputs.append(labels.astype(np.int32) % self.classes)
        params = sampling_params(state)
        return map_batches(lambda rows: self._apply(params, *rows), inputs)

    def __call__(self, state: GanState, count: int, purpose: int = 1) -> np.ndarray:
        """Generate ``count`` examples, float32 [count, ...], from the fixed latents of ``purpose``."""
        return self.from_latents(state, self.latents(-(-count // 100) * 100, purpose))[:count]
