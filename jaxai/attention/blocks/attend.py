"""The forward pass block by block: an online softmax of scores, times values, without the whole score matrix.

The softmax needs a running maximum (Milakov and Gimelshein 2018, arXiv:1805.02867), so it is no sum over blocks and has
a primitive of its own, ``attend``. Its derivatives of every order are ``block_sum``s.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxai.attention._primitives import (
    aligned,
    differentiated,
    loop_lowering,
    primitive,
    register,
    replace,
    spread,
    varying_like,
    zero_tangent,
)
from jaxai.attention.blocks.block_sum import block_sum_p
from jaxai.attention.blocks.grid import (
    INDEX,
    Block,
    Grid,
    Part,
    Schedule,
    batched_operands,
    block_avals,
    cuts,
    fixed_cuts,
    flat_visits,
    known,
    no_hoist,
    put,
    split_schedule,
    visits,
    whole_shape,
)
from jaxai.typing import Array

attend_p = primitive("attend")


@dataclasses.dataclass(frozen=True)
class Attend:
    """The functions of one block that define an attention.

    ``score(masked, q0, k0, *blocks)`` gives scores [..., t, s], -inf where masked; ``weigh(masked, q0, k0, weights,
    *blocks, room=0)`` sums the values with these weights to [..., t, V + room], the last ``room`` columns zeros.
    ``scored`` are the operands that score reads, ``weighed`` those that weigh reads. If ``any_size``, both take blocks
    of other sizes than the grid's. The output is rounded to ``dtype``.
    """

    score: Block
    weigh: Block
    scored: tuple[int, ...]
    weighed: tuple[int, ...]
    any_size: bool
    dtype: Any


def run_attend(
    *args: Array,
    f: Attend,
    ins: tuple[Part, ...],
    outs: tuple[Part, Part],
    grid: Grid,
    schedule: Schedule | None,
    forward: tuple[Grid, Schedule] | None,
) -> list[Array]:
    """Online softmax: a loop over groups of query blocks and, inside, over the blocks of keys that they see."""
    (nonempty, full), operands = (schedule.tables, args) if schedule else (args[:2], args[2:])
    if forward:
        grid, (nonempty, full) = forward[0], forward[1].tables
    group, classes = tall_visits(nonempty, full, GROUP if f.any_size else 1)
    whole = grid.taller(group)
    avals = block_avals(operands, ins, whole)
    scores = jax.eval_shape(functools.partial(f.score, False), INDEX, INDEX, *avals)
    values = jax.eval_shape(functools.partial(f.weigh, False), INDEX, INDEX, scores, *avals)
    rows = values.ndim - 2

    def outer(i, results):
        maximum = jnp.full(scores.shape[:-1], np.finfo(scores.dtype).min, scores.dtype)
        carry = spread([maximum, jnp.zeros_like(maximum), jnp.zeros(values.shape, values.dtype)])
        for masked, size, count, starts, cols in classes:
            tall, alone = grid.taller(size), size == group
            fixed = fixed_cuts(operands, ins, "col", tall, i, 0) if alone else [None] * len(ins)

            def inner(
                step, carry, masked=masked, size=size, alone=alone, starts=starts, cols=cols, tall=tall, fixed=fixed
            ):
                start = 0 if alone else starts[i, step]
                at = i * (group // size) + start, cols[i, step]
                blocks = cuts(operands, ins, fixed, tall, *at)
                new = softmax(f, masked, *no_hoist(tall.origin(*at)), blocks)
                if alone:
                    return spread(merged(carry, new))
                return spread(merged_rows(carry, new, start * tall.block_rows, rows))

            carry = lax.fori_loop(np.int32(0), count[i], inner, carry)
        blocks = finished(f, *carry)
        return [put(x, block, part, whole, i, 0) for x, block, part in zip(results, blocks, outs, strict=True)]

    shapes = [(values.shape, f.dtype), (values.shape[:-1], scores.dtype)]
    results = spread(
        jnp.zeros(whole_shape(shape, p, whole), dtype) for (shape, dtype), p in zip(shapes, outs, strict=True)
    )
    return lax.fori_loop(np.int32(0), np.int32(whole.shape[0]), outer, results)


def softmax(f: Attend, masked: bool, q0: Array, k0: Array, blocks: Sequence[Array]) -> list[Array]:
    """One block's largest scores and sums of weights [..., t], and its weighted values [..., t, V].

    All three are columns of one array: XLA's CPU backend fuses two products and the operations between them into one
    kernel only if it has one result (measured at T = 4096: 8 % faster, with tall blocks 30 %).
    """
    s = f.score(masked, q0, k0, *blocks)
    maximum = jnp.maximum(s.max(-1), np.finfo(s.dtype).min)  # finite in rows that see no key
    weights = jnp.exp(s - maximum[..., None])
    packed = f.weigh(masked, q0, k0, weights, *blocks, room=2)
    width = packed.shape[-1] - 2
    places = np.eye(2, width + 2, width, dtype=s.dtype).reshape(2, *[1] * (s.ndim - 1), width + 2)
    packed = packed + maximum[..., None] * places[0] + weights.sum(-1)[..., None] * places[1]
    packed = lax.optimization_barrier(packed)  # otherwise XLA computes the columns separately
    return [packed[..., width], packed[..., width + 1], packed[..., :width]]


def merged(old: Sequence[Array], new: Sequence[Array]) -> list[Array]:
    """Maximum, sum and weighted values of two sets of keys together."""
    maximum = jnp.maximum(old[0], new[0])
    x, y = jnp.exp(old[0] - maximum), jnp.exp(new[0] - maximum)
    return [maximum, old[1] * x + new[1] * y, old[2] * x[..., None] + new[2] * y[..., None]]


def run_attend_flat(
    *args: Array,
    f: Attend,
    ins: tuple[Part, ...],
    outs: tuple[Part, Part],
    grid: Grid,
    schedule: Schedule | None,
    forward: tuple[Grid, Schedule] | None,
) -> list[Array]:
    """``run_attend`` on a GPU, by the flat loops of ``flat_visits`` over ``grid``.

    The values get no extra columns, since tensor cores are slow for sizes that are no multiple of 8.
    """
    operands, whole = args if schedule else args[2:], grid.taller(grid.shape[0])
    avals = block_avals(operands, ins, grid)
    scores = jax.eval_shape(functools.partial(f.score, False), INDEX, INDEX, *avals)
    values = jax.eval_shape(functools.partial(f.weigh, False), INDEX, INDEX, scores, *avals)
    shape = *values.shape[:-2], grid.rows, values.shape[-1]
    lowest = jnp.full(shape[:-1], np.finfo(scores.dtype).min, scores.dtype)
    carry = spread([lowest, jnp.zeros_like(lowest), jnp.zeros(shape, values.dtype)])
    for masked, rows, cols in flat_visits(schedule, grid):

        def step(n, carry, masked=masked, rows=rows, cols=cols):
            at = rows[n], cols[n]
            origin, blocks = grid.origin(*at), cuts(operands, ins, [None] * len(ins), grid, *at)
            s = f.score(masked, *origin, *blocks)
            maximum = jnp.maximum(s.max(-1), np.finfo(s.dtype).min)
            weights = jnp.exp(s - maximum[..., None])
            new = [maximum, weights.sum(-1), f.weigh(masked, *origin, weights, *blocks)]
            return spread(merged_rows(carry, new, origin[0], values.ndim - 2))

        carry = lax.fori_loop(np.int32(0), np.int32(len(rows)), step, carry)
    return [
        put(jnp.zeros(whole_shape(x.shape, part, grid), x.dtype), x, part, whole, 0, 0)
        for x, part in zip(finished(f, *carry), outs, strict=True)
    ]


def merged_rows(carry: Sequence[Array], new: Sequence[Array], first: Any, axis: int) -> list[Array]:
    """The carry with ``new`` merged into its rows from ``first`` on; ``axis`` is that of the rows."""
    old = [lax.dynamic_slice_in_dim(x, first, y.shape[axis], axis) for x, y in zip(carry, new, strict=True)]
    rows = merged(old, new)
    return [lax.dynamic_update_slice_in_dim(x, y, first, axis) for x, y in zip(carry, rows, strict=True)]


def finished(f: Attend, maximum: Array, total: Array, weighed: Array) -> tuple[Array, Array]:
    """The output and its log-sum-exp, from the maximum, the sum of weights and the weighted values."""
    safe = jnp.where(total == 0, 1, total)
    lse = jnp.where(total == 0, -jnp.inf, maximum + jnp.log(safe))
    return (weighed / safe[..., None]).astype(f.dtype), lse


GROUP = 8
"""The most query blocks that the forward pass takes at once where nothing is masked: a power of two."""


def tall_visits(nonempty: Any, full: Any, limit: int) -> tuple[int, list[tuple[bool, int, Any, Any, Any]]]:
    """The number of query blocks in a group, and for each loop (masked, size, count [n], rows [n, .], columns [n, .]).

    In such a loop each of the n groups has ``count`` visits of blocks that are ``size`` query blocks tall; ``rows``
    count these tall blocks within the group.
    """
    if not known(nonempty, full):
        return 1, [(masked, 1, count, None, cols) for masked, count, cols in visits(nonempty, full)]
    unmasked, group = nonempty & full, math.gcd(limit, nonempty.shape[0])
    while group > 1 and not unmasked.reshape(-1, group, unmasked.shape[1]).all(1).any():
        group //= 2
    left, tables, size = unmasked.copy(), [], group
    while size:
        together = left.reshape(-1, size, left.shape[1]).all(1)
        left &= ~np.repeat(together, size, 0)
        tables.append((False, size, together))
        size //= 2
    tables.append((True, 1, nonempty & ~full))
    classes = []
    for masked, size, table in tables:
        visited = [np.argwhere(x) for x in table.reshape(-1, group // size, table.shape[1])]
        longest = max(map(len, visited))
        if longest:
            order = np.stack([np.pad(x, [(0, longest - len(x)), (0, 0)]) for x in visited]).astype(np.int32)
            count = jnp.asarray([len(x) for x in visited], np.int32)
            classes.append((masked, size, count, *map(jnp.asarray, np.moveaxis(order, 2, 0))))
    return group, classes


def attend(
    f: Attend,
    operands: Sequence[Array],
    ins: Sequence[Part],
    outs: tuple[Part, Part],
    grid: Grid,
    nonempty: Any,
    full: Any,
    forward: tuple[Grid, Schedule] | None = None,
) -> list[Array]:
    """``[softmax(scores) values, log-sum-exp]`` of the scores that ``f`` computes block by block.

    ``outs`` are the parts of the two results, with blocks [..., t, V] and [..., t] of the same leading axes.
    ``forward`` holds the blocks of the forward pass if they differ from those of ``grid``, which derivatives use.
    """
    tables, schedule = split_schedule(nonempty, full)
    params = {"f": f, "ins": tuple(ins), "outs": outs, "grid": grid, "schedule": schedule, "forward": forward}
    return attend_p.bind(*tables, *aligned(operands), **params)


def attend_avals(*args, f, ins, outs, grid, schedule, forward):
    """Shapes and dtypes of the results."""
    avals = block_avals(args[0 if schedule else 2 :], ins, grid)
    scores = jax.eval_shape(functools.partial(f.score, False), INDEX, INDEX, *avals)
    values = jax.eval_shape(functools.partial(f.weigh, False), INDEX, INDEX, scores, *avals)
    out = jax.ShapeDtypeStruct(whole_shape(values.shape, outs[0], grid), f.dtype)
    lse = jax.ShapeDtypeStruct(whole_shape(values.shape[:-1], outs[1], grid), scores.dtype)
    return varying_like(args, [out, lse])


def attend_jvp(args, tangents, *, f, ins, outs, grid, schedule, forward):
    """With weights p = exp(s - lse): d lse = sum_k p ds, and d out = sum_k p (ds v + dv) - (d lse) out."""
    out, lse = attend_p.bind(*args, f=f, ins=ins, outs=outs, grid=grid, schedule=schedule, forward=forward)
    lead = 0 if schedule else 2
    active = differentiated(args[lead:], tangents[lead:])
    if not active:
        return [out, lse], [zero_tangent(x) for x in (out, lse)]
    sums = tangent_sums(f, ins, outs, active)
    duals = [tangents[lead + n] for n in active]
    results = block_sum_p.bind(*args, lse, *duals, **sums._asdict(), grid=grid, schedule=schedule)
    if len(results) == 1:
        return [out, lse], [results[0].astype(out.dtype), zero_tangent(lse)]
    dual_out, dual_lse = results
    subtract = centred if out.dtype == dual_out.dtype else jax.checkpoint(centred)  # stores no out in float32
    return [out, lse], [subtract(dual_out, dual_lse, out), dual_lse]


def centred(dual_out: Array, dual_lse: Array, out: Array) -> Array:
    """The tangent of the output [..., T, N, V] from the two sums, in the output's dtype."""
    return (dual_out - dual_lse[..., None] * out).astype(out.dtype)


class Sums(NamedTuple):
    """A block function and the parts of its operands and results, as arguments of ``block_sum``."""

    f: Block
    ins: tuple[Part, ...]
    outs: tuple[Part, ...]


def tangent_sums(f: Attend, ins: Sequence[Part], outs: tuple[Part, Part], active: Sequence[int]) -> Sums:
    """[sum_k p (ds v + dv), sum_k p ds] as sums over blocks of operands, log-sum-exp and the ``active`` tangents.

    The second sum is left out if the scores have no tangent.
    """
    count = len(ins)
    scored = [n for n in active if n in f.scored]
    weighed = [n for n in active if n in f.weighed]

    def tangent(masked, q0, k0, *blocks):
        primals, lse, duals = blocks[:count], blocks[count], dict(zip(active, blocks[count + 1 :], strict=True))

        def score(*active_blocks):
            return f.score(masked, q0, k0, *replace(primals, scored, active_blocks))

        def weigh(weights, *active_blocks):
            return f.weigh(masked, q0, k0, weights, *replace(primals, weighed, active_blocks))

        s, ds = jax.jvp(score, [primals[n] for n in scored], [duals[n] for n in scored]) if scored else (score(), None)
        weights = jnp.exp(s - jnp.where(lse == -jnp.inf, 0, lse)[..., None])
        values = [primals[n] for n in weighed], [duals[n] for n in weighed]
        if ds is None:
            return [jax.jvp(functools.partial(weigh, weights), *values)[1]]
        dual_weights = weights * ds
        dual_out = jax.jvp(weigh, (weights, *values[0]), (dual_weights, *values[1]))[1]
        return [dual_out, dual_weights.sum(-1)]

    all_ins = (*ins, outs[1], *(ins[n] for n in active))
    return Sums(tangent, all_ins, outs if scored else outs[:1])


def attend_batch(args, axes, *, f, ins, outs, grid, schedule, forward):
    """Batching rule."""
    args, in_axes, ins = batched_operands(args, axes, 0 if schedule else 2, ins)
    bind = functools.partial(attend_p.bind, grid=grid, schedule=schedule, forward=forward)
    if all(axis is None for axis in in_axes):
        results = bind(*args, f=f, ins=ins, outs=outs)
        return results, [None] * len(results)
    size = next(x.shape[0] for x, axis in zip(args[-len(in_axes) :], in_axes, strict=True) if axis == 0)

    def everywhere(mapped, axes):  # scores and values always get the axis, so that their leading axes agree
        def call(masked, q0, k0, *blocks):
            return jax.vmap(functools.partial(mapped, masked, q0, k0), in_axes=axes, axis_size=size)(*blocks)

        return call

    score = everywhere(f.score, in_axes)

    def weigh(masked, q0, k0, weights, *blocks, room=0):
        call = functools.partial(f.weigh, masked, q0, k0, room=room)
        return jax.vmap(call, in_axes=(0, *in_axes), axis_size=size)(weights, *blocks)

    batched = dataclasses.replace(f, score=score, weigh=weigh)
    results = bind(*args, f=batched, ins=ins, outs=tuple(part.batched() for part in outs))
    return results, [0, 0]


register(
    attend_p,
    avals=attend_avals,
    lowerings={None: loop_lowering(run_attend), "gpu": loop_lowering(run_attend_flat)},
    jvp=attend_jvp,
    batch=attend_batch,
)
