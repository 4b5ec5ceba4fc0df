"""Sums over the blocks of a score matrix that never exists, closed under differentiation, transposition and vmap.

Everything that attention computes is a sum over blocks of queries i and blocks of keys j,

    y = sum_ij f(r_i, c_j, t_ij, w),

where each operand is cut along the queries (r), along the keys (c), along both (t) or not at all (w), and each result
is gathered in one of the same four ways. The derivative of such a sum is the sum of the derivative of f; its transpose
is the sum of the transpose of f, with operands and results exchanged; and its vmap is the sum of the vmap of f. So one
primitive, ``block_sum``, is enough for derivatives of every order in O(T) memory: each order is one loop that
recomputes a block and discards it, and the transpose of attention's tangent is the flash backward pass (Dao et al.
2022, algorithm 4) without a line written for it. Only the forward pass is not a sum, since its softmax needs a running
maximum (Milakov and Gimelshein 2018): it is the second primitive, ``attend``, whose derivative is a ``block_sum``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxai.attention._primitives import (
    abstract_value,
    aligned,
    differentiated,
    is_linear,
    is_zero,
    loop_lowering,
    primitive,
    register,
    replace,
    spread,
    varying_like,
    zero_cotangent,
    zero_tangent,
)
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
    wide,
)
from jaxai.typing import Array

block_sum_p = primitive("block_sum")


def block_sum(
    f: Block,
    operands: Sequence[Array],
    ins: Sequence[Part],
    outs: Sequence[Part],
    grid: Grid,
    nonempty: Any,
    full: Any,
) -> list[Array]:
    """``sum_ij f(blocks ij)`` over the ``nonempty`` [nq, nk] blocks; ``ins`` and ``outs`` say how arrays are cut."""
    tables, schedule = split_schedule(nonempty, full)
    return block_sum_p.bind(
        *tables, *aligned(operands), f=f, ins=tuple(ins), outs=tuple(outs), grid=grid, schedule=schedule
    )


def run_block_sum(
    *args: Array, f: Block, ins: tuple[Part, ...], outs: tuple[Part, ...], grid: Grid, schedule: Schedule | None
) -> list[Array]:
    """Two nested loops, the outer one over key blocks if a result is cut along the keys alone, else over query blocks.

    Parts of the outer block are cut once and summed in a local accumulator; other results are updated in place.
    """
    (nonempty, full), operands = (schedule.tables, args) if schedule else (args[:2], args[2:])
    by_key = any(part.row is None and part.col is not None for part in outs)
    if by_key:
        nonempty, full = nonempty.T, full.T
    outer_axis, inner_axis = ("col", "row") if by_key else ("row", "col")
    shapes = jax.eval_shape(functools.partial(f, False), INDEX, INDEX, *block_avals(operands, ins, grid))
    local = [getattr(p, inner_axis) is None and getattr(p, outer_axis) is not None for p in outs]

    def outer(o, results):
        def indices(inner):
            return (inner, o) if by_key else (o, inner)

        fixed = fixed_cuts(operands, ins, inner_axis, grid, *indices(0))
        carry = spread(
            jnp.zeros(shape.shape, shape.dtype) if is_local else result
            for shape, result, is_local in zip(shapes, results, local, strict=True)
        )
        for masked, count, order in visits(nonempty, full):

            def inner(step, carry, masked=masked, order=order):
                i, j = indices(order[o, step])
                blocks = cuts(operands, ins, fixed, grid, i, j)
                new = f(masked, *no_hoist(grid.origin(i, j)), *blocks)
                return spread(
                    old + block if is_local else accumulate(old, block, part, i, j)
                    for old, block, part, is_local in zip(carry, new, outs, local, strict=True)
                )

            carry = lax.fori_loop(np.int32(0), count[o], inner, carry)
        return [
            put(result, block, part, grid, *indices(0)) if is_local else block
            for result, block, part, is_local in zip(results, carry, outs, local, strict=True)
        ]

    def accumulate(whole, block, part, i, j):
        if part.row is not None and part.col is not None:  # each block is visited once
            return put(whole, block, part, grid, i, j)
        return put(whole, cut(whole, part, grid, i, j) + block, part, grid, i, j)

    results = spread(
        jnp.zeros(whole_shape(shape.shape, part, grid), shape.dtype) for shape, part in zip(shapes, outs, strict=True)
    )
    return lax.fori_loop(np.int32(0), np.int32(grid.shape[1 if by_key else 0]), outer, results)


def run_block_sum_flat(
    *args: Array, f: Block, ins: tuple[Part, ...], outs: tuple[Part, ...], grid: Grid, schedule: Schedule | None
) -> list[Array]:
    """``run_block_sum`` on a GPU, by the flat loops of ``flat_visits``; all results are updated in place."""
    operands = args if schedule else args[2:]
    shapes = jax.eval_shape(functools.partial(f, False), INDEX, INDEX, *block_avals(operands, ins, grid))
    results = spread(
        jnp.zeros(whole_shape(shape.shape, part, grid), shape.dtype) for shape, part in zip(shapes, outs, strict=True)
    )
    for masked, rows, cols in flat_visits(schedule, grid):

        def step(n, results, masked=masked, rows=rows, cols=cols):
            i, j = rows[n], cols[n]
            new = f(masked, *grid.origin(i, j), *cuts(operands, ins, [None] * len(ins), grid, i, j))
            return spread(
                put(whole, cut(whole, part, grid, i, j) + block, part, grid, i, j)
                for whole, block, part in zip(results, new, outs, strict=True)
            )

        results = lax.fori_loop(np.int32(0), np.int32(len(rows)), step, results)
    return results


def block_sum_avals(*args, f, ins, outs, grid, schedule):
    """Shapes and dtypes of the results."""
    operands = args[0 if schedule else 2 :]
    shapes = jax.eval_shape(functools.partial(f, False), INDEX, INDEX, *block_avals(operands, ins, grid))
    wholes = [
        jax.ShapeDtypeStruct(whole_shape(x.shape, part, grid), x.dtype) for x, part in zip(shapes, outs, strict=True)
    ]
    return varying_like(args, wholes)


def block_sum_jvp(args, tangents, *, f, ins, outs, grid, schedule):
    """Forward derivative: further block sums."""
    results = block_sum_p.bind(*args, f=f, ins=ins, outs=outs, grid=grid, schedule=schedule)
    lead = 0 if schedule else 2
    active = differentiated(args[lead:], tangents[lead:])

    def tangent(masked, q0, k0, *blocks):
        primals, duals = blocks[: len(ins)], blocks[len(ins) :]

        def of_active(*active_blocks):
            return f(masked, q0, k0, *replace(primals, active, active_blocks))

        return jax.jvp(of_active, [primals[n] for n in active], list(duals))[1]

    if not active:
        return results, [zero_tangent(x) for x in results]
    duals = [tangents[lead + n] for n in active]
    all_ins = (*ins, *(ins[n] for n in active))
    return results, block_sum_p.bind(*args, *duals, f=tangent, ins=all_ins, outs=outs, grid=grid, schedule=schedule)


def block_sum_transpose(cotangents, *args, f, ins, outs, grid, schedule):
    """Transpose in the linear operands: block sums again."""
    lead = 0 if schedule else 2
    operands = args[lead:]
    unknown = [n for n, x in enumerate(operands) if is_linear(x)]
    known = [n for n in range(len(operands)) if n not in unknown]
    given = [n for n, ct in enumerate(cotangents) if not is_zero(ct)]
    if not given:
        return [None] * lead + [zero_cotangent(x) if is_linear(x) else None for x in operands]
    avals = block_avals([abstract_value(x) for x in operands], ins, grid)

    def transposed(masked, q0, k0, *blocks):
        known_blocks, given_blocks = blocks[: len(known)], blocks[len(known) :]

        def linear(*unknown_blocks):
            blocks = replace(replace([None] * len(ins), known, known_blocks), unknown, unknown_blocks)
            results = f(masked, q0, k0, *blocks)
            return [results[n] for n in given]

        blocks = jax.linear_transpose(linear, *(avals[n] for n in unknown))(list(given_blocks))
        return [x.astype(wide(x.dtype)) for x in blocks]

    results = block_sum_p.bind(
        *args[:lead],
        *(operands[n] for n in known),
        *(cotangents[n] for n in given),
        f=transposed,
        ins=(*(ins[n] for n in known), *(outs[n] for n in given)),
        outs=tuple(ins[n] for n in unknown),
        grid=grid,
        schedule=schedule,
    )
    results = [x.astype(abstract_value(operands[n]).dtype) for n, x in zip(unknown, results, strict=True)]
    return [None] * lead + replace([None] * len(operands), unknown, results)


def block_sum_batch(args, axes, *, f, ins, outs, grid, schedule):
    """Batching rule."""
    args, in_axes, ins = batched_operands(args, axes, 0 if schedule else 2, ins)
    if all(axis is None for axis in in_axes):  # only the schedule is batched
        results = block_sum_p.bind(*args, f=f, ins=ins, outs=outs, grid=grid, schedule=schedule)
        return results, [None] * len(results)
    outs = tuple(part.batched() for part in outs)
    results = block_sum_p.bind(*args, f=batched_block(f, in_axes), ins=ins, outs=outs, grid=grid, schedule=schedule)
    return results, [0] * len(results)


register(
    block_sum_p,
    avals=block_sum_avals,
    lowerings={None: loop_lowering(run_block_sum), "gpu": loop_lowering(run_block_sum_flat)},
    jvp=block_sum_jvp,
    transpose=block_sum_transpose,
    batch=block_sum_batch,
)
