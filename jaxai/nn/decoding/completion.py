"""Completion of a prompt by a language model."""

from collections.abc import Iterator
from functools import partial
from typing import cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from jaxai.nn.decoding.generation import generate
from jaxai.nn.decoding.sampling import Sampling
from jaxai.nn.rnn import RecurrentLanguageModel, init_state
from jaxai.nn.transformer import init_cache
from jaxai.nn.transformer_models import LanguageModel
from jaxai.typing import Array, PyTree

Network = LanguageModel | RecurrentLanguageModel


def complete(
    network: Network,
    params: PyTree,
    prompt: Int[np.ndarray, " T"],
    count: int,
    key: Key[Array, ""],
    sampling: Sampling,
    *,
    context: int,
) -> Iterator[Int[np.ndarray, " _"]]:
    """Yield ``count`` tokens that follow ``prompt`` int32 [T], in chunks, sampled as in `generate`.

    A Transformer sees at most the last ``context`` tokens; a recurrent network's state depends on all of them.
    """
    limit = context if isinstance(network, LanguageModel) else None
    empty = empty_state(network, 1, context)
    pieces = generate(partial(advance, network), params, empty, prompt[None], count, key, sampling, context=limit)
    return (piece[0] for piece in pieces)


def advance(
    network: Network, params: PyTree, state: PyTree, tokens: Int[Array | np.ndarray, "B T"]
) -> tuple[Float[Array, "B V"], PyTree]:
    """Feed ``tokens`` to the network; return the next token's logits and the new state (an `Advance`)."""
    logits, out = network.apply({"params": params}, tokens, cache=state)
    return cast(Array, logits)[:, -1], out["cache"]


def empty_state(network: Network, batch: int, context: int) -> PyTree:
    """The state before any token: zeros for a recurrent network, else an empty cache for ``context`` tokens per row."""
    if isinstance(network, RecurrentLanguageModel):
        return init_state(network.config, batch)
    return init_cache(network.config, batch, context, jnp.float32 if network.dtype is None else network.dtype)
