"""Sampling the next token from logits with temperature, top-k, top-p and min-p."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from jaxai.errors import UserError
from jaxai.typing import Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling options. The filters apply in this order; the remaining probabilities are renormalised."""

    temperature: float = 1.0
    """Divisor of the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Keep only this many of the most likely tokens; 0: all (Fan et al. 2018, arXiv:1805.04833)."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens whose total probability is at least this (arXiv:1904.09751)."""
    min_p: float = 0.0
    """Keep only tokens with at least this share of the highest probability (arXiv:2407.01082)."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must lie in [0, 1], got {self.min_p}")


def sampling_logits(logits: Float[Array, "*B V"], sampling: Sampling) -> Float[Array, "*B V"]:
    """The filtered logits [..., V]: their softmax is the distribution of `sample`; excluded tokens have -inf.

    Ties at the cut-off of top-k and top-p go to the smaller token id.

    >>> p = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    >>> [f"{share:.3f}" for share in jax.nn.softmax(sampling_logits(p, Sampling(top_p=0.75)))]
    ['0.625', '0.375', '0.000', '0.000']
    """
    if sampling.temperature == 0:
        return jnp.log(jax.nn.one_hot(logits.argmax(-1), logits.shape[-1]))
    logits = logits / sampling.temperature
    order = jnp.argsort(-logits, axis=-1)
    rank = jnp.argsort(order, axis=-1)
    keep = rank < (sampling.top_k or logits.shape[-1])
    if sampling.top_p < 1:
        probabilities = jnp.take_along_axis(jax.nn.softmax(jnp.where(keep, logits, -jnp.inf)), order, -1)
        likelier = jnp.cumsum(probabilities, -1) - probabilities  # total probability of more likely tokens
        keep &= jnp.take_along_axis(likelier, rank, -1) < sampling.top_p
    if sampling.min_p > 0:
        keep &= logits >= logits.max(-1, keepdims=True) + jnp.log(sampling.min_p)
    return jnp.where(keep, logits, -jnp.inf)


def sample(logits: Float[Array, "*B V"], key: Key[Array, ""], sampling: Sampling) -> Int[Array, "*B"]:
    """Sample one token for each row of logits [..., V], int32 [...]."""
    return jax.random.categorical(key, sampling_logits(logits, sampling)).astype(jnp.int32)
