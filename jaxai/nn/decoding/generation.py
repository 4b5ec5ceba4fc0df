"""Autoregressive generation: sample one token at a time from any network with a state."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from jaxai.errors import UserError
from jaxai.nn.decoding.sampling import Sampling, sample
from jaxai.typing import Array, PyTree

Advance = Callable[[PyTree, PyTree, Int[Array, "B T"]], tuple[Float[Array, "B V"], PyTree]]
"""(params, state, the next tokens) -> (logits of the token after them, new state)."""


def generate(
    advance: Advance,
    params: PyTree,
    empty: PyTree,
    prompt: Int[np.ndarray, "B T"],
    count: int,
    key: Key[Array, ""],
    sampling: Sampling,
    *,
    context: int | None = None,
    chunk: int = 32,
) -> Iterator[Int[np.ndarray, "B _"]]:
    """Yield ``count`` tokens that follow ``prompt`` int32 [B, T], in chunks [B, <= chunk].

    ``empty`` is the state before any token. Token i is sampled with ``fold_in(key, i)``, so the result does not depend
    on ``chunk``. If the state holds at most ``context`` tokens, it is recomputed from the last ``context // 2`` tokens
    whenever it is full, including by the prompt. ``advance`` is compiled once per function object: reuse the object.
    Raises UserError for an empty prompt or a context below 2.
    """
    if prompt.shape[1] < 1:
        raise UserError("prompt is empty: give at least one token")
    if context is not None and context < 2:
        raise UserError(f"context={context}: give at least 2 tokens")
    tokens, done = prompt, 0
    while done < count:
        room = count - done
        if context is not None:
            tokens = tokens if not done and tokens.shape[1] < context else tokens[:, -(context // 2) :]
            room = min(room, context - tokens.shape[1])
        logits, state = read(params, empty, tokens, advance=advance)
        for first in range(done, done + room, chunk):
            size = min(chunk, done + room - first)
            numbers = np.int32(first), np.int32(size)
            # On a GPU a loop of dynamic length waits for the host at every token: full chunks get a static length.
            known = size == chunk and jax.default_backend() != "cpu"
            how = {"advance": advance, "sampling": sampling, "chunk": chunk, "whole": known}
            state, logits, new = write(params, state, logits, key, *numbers, **how)
            yield (new := np.asarray(new)[:, :size])
            tokens = np.concatenate([tokens, new], 1)
        done += room


@partial(jax.jit, static_argnames="advance")
def read(params: PyTree, state: PyTree, tokens: Array, *, advance: Advance) -> tuple[Array, PyTree]:
    """Call ``advance``, compiled."""
    return advance(params, state, tokens)


@partial(jax.jit, static_argnames=("advance", "sampling", "chunk", "whole"))
def write(
    params: PyTree,
    state: PyTree,
    logits: Array,
    key: Array,
    first: Array,
    count: Array,
    *,
    advance: Advance,
    sampling: Sampling,
    chunk: int,
    whole: bool,
) -> tuple[PyTree, Array, Array]:
    """Sample ``count`` tokens; return the new state and logits, and the tokens [B, chunk], padded with 0.

    ``first`` is the number of the first token. One program serves every count up to ``chunk``; with ``whole`` the count
    is ``chunk`` and the loop's length static.
    """

    def one(index: Array, carry: tuple[PyTree, Array, Array]) -> tuple[PyTree, Array, Array]:
        state, logits, tokens = carry
        token = sample(logits, jax.random.fold_in(key, first + index), sampling)
        logits, state = advance(params, state, token[:, None])
        return state, logits, tokens.at[:, index].set(token)

    empty = jnp.zeros((len(logits), chunk), jnp.int32)
    return jax.lax.fori_loop(0, chunk if whole else count, one, (state, logits, empty))
