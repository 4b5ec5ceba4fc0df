"""Batched beam search: the most likely sequences under an autoregressive network."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from jaxai.errors import UserError
from jaxai.nn.decoding.generation import Advance
from jaxai.nn.transformer import init_cache, reorder_cache, with_memory
from jaxai.nn.transformer_models import EncoderDecoder
from jaxai.typing import Array, PyTree


class Beams(NamedTuple):
    """State of the search: for each row, K unfinished sequences and the K best finished ones so far."""

    length: Array
    tokens: Array
    log_probability: Array
    finished: Array
    scores: Array
    state: PyTree


def beam_search(
    advance: Advance,
    reorder: Callable[[PyTree, Int[Array, " BK"]], PyTree],
    params: PyTree,
    state: PyTree,
    first: Int[Array, " B"],
    *,
    end: int,
    beams: int,
    max_length: int,
    length_penalty: float = 1.0,
) -> tuple[Int[Array, "B K T"], Float[Array, "B K"]]:
    """Find the K = ``beams`` best sequences that follow each row's token ``first`` [B]; return them, best first, and
    their scores.

    A score is log p(sequence) / length ** length_penalty, where the length includes ``end`` (after Wu et al. 2016,
    arXiv:1609.08144). ``state`` has B * K rows, the beams of a row adjacent; ``reorder(state, rows)`` gathers rows.
    Sequences are int32 [B, K, T = max_length], padded with ``end``; a sequence that reaches T counts as finished. The
    search stops once no unfinished sequence can beat the finished ones. To be jitted by the caller. Raises UserError
    for fewer than one beam or token.
    """
    if beams < 1 or max_length < 1:
        raise UserError(f"beams={beams}, max_length={max_length}: give at least 1")
    B, K, T = len(first), beams, max_length
    row = jnp.arange(B)[:, None]

    def penalised(log_probability: Array, length: Array | int) -> Array:
        return log_probability / jnp.asarray(length, jnp.float32) ** length_penalty

    def better_possible(search: Beams) -> Array:
        # Log-probabilities only decrease, so the best reachable score is at the greatest length for a positive penalty,
        # else at the next length.
        length = T if length_penalty > 0 else search.length + 1
        best = penalised(search.log_probability.max(-1), length)
        return (search.length < T) & (best > search.scores.min(-1)).any()

    def step(search: Beams) -> Beams:
        last = jnp.where(search.length == 0, jnp.repeat(first[:, None], K, 1), search.tokens[:, :, search.length - 1])
        logits, state = advance(params, search.state, last.reshape(-1, 1))
        log_p = search.log_probability[:, :, None] + jax.nn.log_softmax(logits).reshape(B, K, -1)
        V = log_p.shape[-1]
        values, places = lax.top_k(log_p.reshape(B, -1), min(2 * K, K * V))  # at most K of these end: K stay unfinished
        parent, token = places // V, (places % V).astype(jnp.int32)
        tokens = search.tokens[row, parent].at[:, :, search.length].set(token)
        ended = (token == end) | (search.length + 1 == T)
        scores = jnp.where(ended, penalised(values, search.length + 1), -jnp.inf)
        scores, kept = lax.top_k(jnp.concatenate([search.scores, scores], 1), K)
        finished = jnp.concatenate([search.finished, tokens], 1)[row, kept]
        values, kept = lax.top_k(jnp.where(token == end, -jnp.inf, values), K)
        parent = parent[row, kept]
        state = reorder(state, (row * K + parent).reshape(-1))
        return Beams(search.length + 1, tokens[row, kept], values, finished, scores, state)

    empty = jnp.full((B, K, T), end, jnp.int32)
    none = jnp.full((B, K), -jnp.inf)
    start = Beams(jnp.int32(0), empty, none.at[:, 0].set(0.0), empty, none, state)  # all beams start equal: keep one
    search = lax.while_loop(better_possible, step, start)
    return search.finished, search.scores


def translate(
    network: EncoderDecoder,
    params: PyTree,
    source: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    *,
    begin: int,
    end: int,
    beams: int,
    max_length: int,
    length_penalty: float = 1.0,
) -> tuple[Int[Array, "B K T"], Float[Array, "B K"]]:
    """Find the K = ``beams`` best targets for each source, int [B, S] with ``lengths`` [B], by `beam_search`.

    Each source is encoded once; all of its beams share its keys and values. Targets begin with the token ``begin``,
    which is not part of the result. Returns and raises as `beam_search`; to be jitted by the caller.
    """
    B = len(source)

    def decode(params: PyTree, cache: PyTree, tokens: Array, memory: Array | None = None) -> tuple[Array, PyTree]:
        logits, out = network.apply({"params": params}, tokens, memory, lengths, cache=cache, method="decode")
        return jnp.asarray(logits)[:, -1], out["cache"]

    memory, _ = network.apply({"params": params}, source, lengths, method="encode")
    empty = init_cache(network.config, B * beams, max_length)
    _, filled = decode(params, empty, jnp.full((B * beams, 1), begin, jnp.int32), jnp.asarray(memory))
    return beam_search(
        decode,
        reorder_cache,
        params,
        with_memory(empty, filled),
        jnp.full(B, begin, jnp.int32),
        end=end,
        beams=beams,
        max_length=max_length,
        length_penalty=length_penalty,
    )
