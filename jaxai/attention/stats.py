"""Statistics of an attention's softmax in O(T) memory: `attention_stats`.

Three loops over the blocks of scores compute the largest score of each row, which shifts the exponents; the sums of
each row's weights and of weight times score, which give log-sum-exp and entropy; and the sum of each column's weights.
The last two are `block_sum`s, so they have derivatives of every order in O(T) memory. Weights are computed only for
chosen rows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool

from jaxai.attention._primitives import loop_lowering, primitive, register, varying_like
from jaxai.attention.arguments import checked, checked_pair
from jaxai.attention.blocks.block_sum import block_sum
from jaxai.attention.blocks.blockwise import BlockedCall, block_sizes
from jaxai.attention.blocks.grid import (
    INDEX,
    Block,
    Grid,
    Part,
    Schedule,
    batched_block,
    batched_operands,
    block_avals,
    cut,
    cuts,
    fixed_cuts,
    flat_visits,
    no_hoist,
    put,
    split_schedule,
    visits,
    whole_shape,
)
from jaxai.attention.masks import Mask
from jaxai.attention.position import ScoreMod
from jaxai.attention.reference import Call, block_indices, finite, modified, nan_flag, scaled
from jaxai.typing import Array, Float, Int

KEY_PART = Part(None, 1, (0, 2, 1))
"""Blocks [B, N, s] of an array [B, S, N]."""

row_maxima_p = primitive("row_maxima")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionStats:
    """The result of `attention_stats`, in at least float32; without B if the arguments have none.

    log_sum_exp [B, T, N]; max_logit [B, T, N]; entropy [B, T, N]; mass [B, S, N]; weights [B, R, N, S] or None.
    """

    log_sum_exp: Any
    max_logit: Any
    entropy: Any
    mass: Any
    weights: Any


def attention_stats(
    query: Float[Array | np.ndarray, "*B T N H"],
    key: Float[Array | np.ndarray, "*B S K H"],
    bias: Float[Array | np.ndarray, "..."] | None = None,
    mask: Mask | Bool[Array | np.ndarray, "..."] | None = None,
    *,
    rows: Sequence[int] | Int[Array | np.ndarray, " R"] | None = None,
    scale: float | Float[Array, ""] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array | np.ndarray, " B"] | None = None,
    key_value_seq_lengths: Int[Array | np.ndarray, " B"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    score_mod: ScoreMod | None = None,
    logits_soft_cap: float | None = None,
    sinks: Float[Array | np.ndarray, " N"] | None = None,
    segment_ids: Any = None,
    precision: lax.PrecisionLike = None,
    block_size: int | tuple[int, int] | None = None,
) -> AttentionStats:
    """Statistics of the softmax p = exp(s - log_sum_exp) of an attention's scores s, in O(T) memory.

    Arguments are those of `dot_product_attention`. Per query: ``log_sum_exp``; ``max_logit``, the largest visible score
    after cap, score_mod and bias, without gradient (arXiv:2302.05442); ``entropy``, -sum p log p in nats
    (arXiv:2303.06296). Per key: ``mass``, the sum of p over the queries. ``weights``: p of the chosen ``rows``, ints or
    an array [R] whose values are clipped. A query that sees no key has -inf, -inf, 0 and weights 0. A sink counts in
    log_sum_exp and entropy, not in max_logit, mass and weights. Raises ValueError as `dot_product_attention` does, and
    for ints that are no rows.

    >>> query, key = jax.random.normal(jax.random.key(0), (2, 1, 600, 4, 8))
    >>> stats = attention_stats(query, key, is_causal=True, rows=[0, 599])
    >>> stats.entropy.shape, stats.entropy[0, 0].tolist(), stats.weights[0, 0, 0, :3].tolist()
    ((1, 600, 4), [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    >>> stats.mass.shape, stats.mass.sum(1).round(2).tolist()
    ((1, 600, 4), [[600.0, 600.0, 600.0, 600.0]])
    """
    call, batched = checked(
        query,
        key,
        jnp.zeros((*key.shape[:-1], 1), key.dtype),
        bias,
        mask,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        score_mod=score_mod,
        logits_soft_cap=logits_soft_cap,
        sinks=sinks,
        segment_ids=segment_ids,
        dropout_rate=0.0,
        dropout_key=None,
        precision=precision,
    )
    blocks = None if block_size is None else checked_pair("block_size", block_size, 1)
    stats = run(call, None if rows is None else checked_rows(rows, call.sizes[1]), blocks)
    return stats if batched else jax.tree.map(lambda x: x[0], stats)


@functools.partial(jax.jit, static_argnames="block_size")
def run(call: Call, rows: Array | None, block_size: tuple[int, int] | None) -> AttentionStats:
    """The statistics of a checked call, compiled even if the caller does not jit."""
    blocked = BlockedCall(call, *(block_size or block_sizes(call)))
    _, T, S, _, _ = call.sizes

    def totals(masked, q0, k0, shift, *blocks):
        weights, weighted = weigh(blocked.f.score(masked, q0, k0, *blocks), shift[..., None])
        return [weights.sum(-1), weighted.sum(-1)]

    def masses(masked, q0, k0, lse, *blocks):
        s = blocked.f.score(masked, q0, k0, *blocks)
        return [weigh(s, lse[..., None])[0].sum(-2)]

    def sum_over_blocks(block, constant, outs):
        operands, parts = [constant, *blocked.operands], [blocked.row_part, *blocked.parts]
        return block_sum(block, operands, parts, outs, blocked.grid, blocked.nonempty, blocked.full)

    maximum = row_maxima(blocked)
    sinks = sink_logits(call)[None, None]
    shift = jnp.maximum(maximum, lax.stop_gradient(sinks))
    sums = sum_over_blocks(totals, shift, [blocked.row_part] * 2)
    total, weighted = (x + of_sink for x, of_sink in zip(sums, weigh(sinks, shift), strict=True))
    safe = jnp.where(total == 0, 1, total)
    lse = jnp.where(total == 0, -jnp.inf, shift + jnp.log(safe))
    # Both terms with s - shift in place of s: log-sum-exp and mean score may be large and nearly equal.
    entropy = jnp.log(safe) - weighted / safe
    (mass,) = sum_over_blocks(masses, lse, [KEY_PART])
    weights = None if rows is None else row_weights(call, rows)
    return AttentionStats(lse[:, :T], maximum[:, :T], entropy[:, :T], mass[:, :S], weights)


def sink_logits(call: Call) -> Array:
    """The sinks [N], -inf where the call has none."""
    return jnp.full(call.sizes[3], -jnp.inf, call.dtype) if call.sinks is None else call.sinks.astype(call.dtype)


def weigh(s: Array, shift: Array) -> tuple[Array, Array]:
    """exp(s - shift), and that times s - shift; both 0 where s is -inf, also if shift is."""
    visible = s != -jnp.inf
    s = jnp.where(visible, s - jnp.where(shift == -jnp.inf, 0, shift), 0)
    weights = jnp.where(visible, jnp.exp(s), 0)
    return weights, weights * s


def row_maxima(blocked: BlockedCall) -> Array:
    """The largest score of each row, [B, T, N] with T in whole blocks, -inf where nothing is visible; no gradient."""
    tables, schedule = split_schedule(blocked.nonempty, blocked.full)
    operands = [lax.stop_gradient(x) for x in blocked.operands]
    layout = {"ins": tuple(blocked.parts), "out": blocked.row_part, "grid": blocked.grid}
    return row_maxima_p.bind(*tables, *operands, score=blocked.f.score, **layout, schedule=schedule)[0]


def run_row_maxima(
    *args: Array, score: Block, ins: tuple[Part, ...], out: Part, grid: Grid, schedule: Schedule | None
) -> list[Array]:
    """A loop over query blocks and, inside, over the key blocks that they see, as in `attend.run_attend`."""
    (nonempty, full), operands = (schedule.tables, args) if schedule else (args[:2], args[2:])
    scores = jax.eval_shape(functools.partial(score, False), INDEX, INDEX, *block_avals(operands, ins, grid))

    def outer(i, result):
        fixed = fixed_cuts(operands, ins, "col", grid, i, 0)
        maximum = jnp.full(scores.shape[:-1], -jnp.inf, scores.dtype)
        for masked, count, order in visits(nonempty, full):

            def inner(step, maximum, masked=masked, order=order):
                j = order[i, step]
                blocks = cuts(operands, ins, fixed, grid, i, j)
                return jnp.maximum(maximum, score(masked, *no_hoist(grid.origin(i, j)), *blocks).max(-1))

            maximum = lax.fori_loop(np.int32(0), count[i], inner, maximum)
        return put(result, maximum, out, grid, i, 0)

    result = jnp.zeros(whole_shape(scores.shape[:-1], out, grid), scores.dtype)
    return [lax.fori_loop(np.int32(0), np.int32(grid.shape[0]), outer, result)]


def run_row_maxima_flat(
    *args: Array, score: Block, ins: tuple[Part, ...], out: Part, grid: Grid, schedule: Schedule | None
) -> list[Array]:
    """`run_row_maxima` on a GPU, by the flat loops of `flat_visits`."""
    operands = args if schedule else args[2:]
    scores = jax.eval_shape(functools.partial(score, False), INDEX, INDEX, *block_avals(operands, ins, grid))
    result = jnp.full(whole_shape(scores.shape[:-1], out, grid), -jnp.inf, scores.dtype)
    for masked, rows, cols in flat_visits(schedule, grid):

        def step(n, result, masked=masked, rows=rows, cols=cols):
            i, j = rows[n], cols[n]
            blocks = cuts(operands, ins, [None] * len(ins), grid, i, j)
            maximum = score(masked, *grid.origin(i, j), *blocks).max(-1)
            return put(result, jnp.maximum(cut(result, out, grid, i, j), maximum), out, grid, i, j)

        result = lax.fori_loop(np.int32(0), np.int32(len(rows)), step, result)
    return [result]


def row_maxima_avals(*args, score, ins, out, grid, schedule):
    """Shapes and dtypes of the results."""
    avals = block_avals(args[0 if schedule else 2 :], ins, grid)
    scores = jax.eval_shape(functools.partial(score, False), INDEX, INDEX, *avals)
    shape = whole_shape(scores.shape[:-1], out, grid)
    return varying_like(args, [jax.ShapeDtypeStruct(shape, scores.dtype)])


def batch_row_maxima(args, axes, *, score, ins, out, grid, schedule):
    """Batching rule."""
    args, in_axes, ins = batched_operands(args, axes, 0 if schedule else 2, ins)
    bind = functools.partial(row_maxima_p.bind, *args, ins=ins, grid=grid, schedule=schedule)
    if all(axis is None for axis in in_axes):  # only the schedule is batched
        return bind(score=score, out=out), [None]
    return bind(score=batched_block(score, in_axes), out=out.batched()), [0]


register(
    row_maxima_p,
    avals=row_maxima_avals,
    lowerings={None: loop_lowering(run_row_maxima), "gpu": loop_lowering(run_row_maxima_flat)},
    batch=batch_row_maxima,
)


def row_weights(call: Call, rows: Array) -> Array:
    """The softmax weights of some rows [R], [B, R, N, S]."""
    B, T, S, N, K = call.sizes
    rows = jnp.clip(rows, 0, T - 1).astype(np.int32)

    def take(x: Array, axis: int | None) -> Array:
        return x if axis is None else jnp.take(x, rows, axis, mode="clip")

    query, key = take(call.query, 1), call.key
    nan = nan_flag(query).swapaxes(1, 2)[..., None] + jnp.repeat(nan_flag(key).swapaxes(1, 2), N // K, 1)[:, :, None]
    query, key = finite(query), finite(key)
    einsum = functools.partial(jnp.einsum, precision=call.precision, preferred_element_type=call.dtype)
    scores = einsum("BRKGH,BSKH->BKGRS", query.reshape(B, -1, K, N // K, query.shape[-1]), key)
    scores = scaled(scores.reshape(B, N, -1, S), call)
    b, n, _, k = block_indices((B, N, T, S))
    q = rows[None, None, :, None]
    shape = (B, 1, rows.shape[0], S)  # rows may jump, so score functions get both positions in full
    indices = b, n, jnp.broadcast_to(q, shape), jnp.broadcast_to(k, shape)
    bias = call.bias
    if bias is not None and bias.shape[2] > 1:
        bias = take(bias, 2)
    scores = modified(scores, call, bias, indices) + nan
    if call.mask is not None:
        leaves, treedef = jax.tree.flatten(call.mask)
        leaves = [take(x, axis) for x, (axis, _) in zip(leaves, call.mask.leaf_axes(), strict=True)]
        scores = jnp.where(jax.tree.unflatten(treedef, leaves).block(b, n, q, k), scores, -jnp.inf)
    sinks = sink_logits(call)[None, :, None, None]
    shift = lax.stop_gradient(jnp.maximum(scores.max(-1, keepdims=True), sinks))
    weights = weigh(scores, shift)[0]
    total = weights.sum(-1, keepdims=True) + weigh(sinks, shift)[0]
    return (weights / jnp.where(total == 0, 1, total)).swapaxes(1, 2)


def checked_rows(rows: Any, T: int) -> Array:
    """Row numbers as an array [R], checked if they are known while tracing."""
    if not isinstance(rows, jax.Array):
        rows = np.asarray(rows)
        if (
            rows.ndim != 1
            or not np.issubdtype(rows.dtype, np.integer)
            or rows.min(initial=0) < 0
            or rows.max(initial=0) >= T
        ):
            raise ValueError(f"rows={rows.tolist()} must be ints from 0 to {T - 1}, the query's rows")
    elif rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise ValueError(f"rows has shape {rows.shape} and dtype {rows.dtype}: give ints [R]")
    return jnp.asarray(rows)
