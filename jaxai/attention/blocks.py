"""Sums over the blocks of a score matrix that never exists, closed under differentiation, transposition and vmap.

Everything that attention computes is a sum over blocks of queries i and blocks of keys j,

    y = sum_ij f(r_i, c_j, t_ij, w),

where every operand is cut along the queries (r), along the keys (c), along both (t) or not at all (w), and every result
is gathered in the same four ways. The derivative of such a sum is the sum of the derivative of f; its transpose is
the sum of the transpose of f, with operands and results changing places; and so is its vmap. So one primitive,
``block_sum``, is enough for derivatives of every order in O(T) memory: each order is one loop that recomputes a block
and throws it away, and the transpose of attention's tangent is the flash backward pass (Dao et al. 2022, algorithm 4)
without having been written. Only the forward pass is not a sum, since its softmax needs a running maximum (Milakov
and Gimelshein 2018): it is the second primitive, ``attend``, whose derivative is a ``block_sum``.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxai.typing import Array

Block = Callable[..., Any]
"""``f(masked, q0, k0, *blocks) -> blocks``: ``masked`` says whether some of the block's entries are invisible, q0 and
k0 are the first row and the first column of the block."""


@dataclasses.dataclass(frozen=True)
class Part:
    """How one operand or result is cut into blocks.

    ``row`` and ``col`` are its axes along the queries and the keys, None where it has no such axis; ``order`` is the
    order of the axes inside a block, so that arrays stay BTNH while blocks are ready for a matrix product. Blocks of
    floats are at least float32 where ``widened``: attention's own arrays are, what a user's function captures is not.
    """

    row: int | None
    col: int | None
    order: tuple[int, ...]
    widened: bool = True

    def batched(self) -> "Part":
        """The same with a new leading axis."""
        row, col = (None if axis is None else axis + 1 for axis in (self.row, self.col))
        return dataclasses.replace(self, row=row, col=col, order=(0, *(axis + 1 for axis in self.order)))

    def dtype(self, x: Any) -> Any:
        """The dtype of an operand's blocks."""
        return wide(x.dtype) if self.widened else x.dtype


@dataclasses.dataclass(frozen=True)
class Grid:
    """Rows and columns of the score matrix and of its blocks; blocks divide them."""

    rows: int
    cols: int
    block_rows: int
    block_cols: int

    def taller(self, factor: int) -> "Grid":
        """So many blocks of rows as one."""
        return dataclasses.replace(self, block_rows=factor * self.block_rows)

    @property
    def shape(self) -> tuple[int, int]:
        """How many blocks there are."""
        return self.rows // self.block_rows, self.cols // self.block_cols

    def origin(self, i: Any, j: Any) -> tuple[Array, Array]:
        """First row and column of a block, int32 also where x64 makes loop counters int64."""
        return jnp.int32(i) * self.block_rows, jnp.int32(j) * self.block_cols


class Schedule:
    """Which blocks may have visible entries and which have nothing else, known at trace time."""

    def __init__(self, possible: np.ndarray, certain: np.ndarray):
        self.tables = possible, certain

    def __repr__(self) -> str:
        return f"Schedule({self.tables[0].sum()} of {self.tables[0].size} blocks)"


def wide(dtype: Any) -> Any:
    """The dtype that is summed in: for floats at least float32."""
    return jnp.promote_types(dtype, np.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def cut(x: Array, part: Part, grid: Grid, i: Any, j: Any) -> Array:
    """Block (i, j) of an operand."""
    q0, k0 = grid.origin(i, j)
    if part.row is not None:
        x = lax.dynamic_slice_in_dim(x, q0, grid.block_rows, part.row)
    if part.col is not None:
        x = lax.dynamic_slice_in_dim(x, k0, grid.block_cols, part.col)
    return lax.transpose(x, part.order).astype(part.dtype(x))


def fixed_cuts(operands: Sequence[Array], parts: Sequence[Part], axis: str, grid: Grid, i: Any, j: Any) -> list[Any]:
    """Block (i, j) of the operands that are not cut along ``axis``, "row" or "col"; None for the others."""
    return [
        cut(x, part, grid, i, j) if getattr(part, axis) is None else None
        for x, part in zip(operands, parts, strict=True)
    ]


def cuts(
    operands: Sequence[Array], parts: Sequence[Part], fixed: Sequence[Any], grid: Grid, i: Any, j: Any
) -> list[Array]:
    """Block (i, j) of every operand; ``fixed`` holds some of them."""
    return [
        cut(x, part, grid, i, j) if block is None else block
        for x, part, block in zip(operands, parts, fixed, strict=True)
    ]


def hidden(origin: tuple[Array, Array]) -> tuple[Array, Array]:
    """The origin as something that changes with every block, so that XLA keeps positions inside the loop.

    Hoisted out of it they become small arrays, and LLVM's AVX-512 backend aborts the process on some of their loads
    (float64, causal: "Cannot select: X86ISD::SUBV_BROADCAST_LOAD", jaxlib 0.12.0).
    """
    return lax.optimization_barrier(origin)


def put(x: Array, block: Array, part: Part, grid: Grid, i: Any, j: Any) -> Array:
    """Write block (i, j) of a result."""
    starts: list[Any] = [np.int32(0)] * x.ndim
    q0, k0 = grid.origin(i, j)
    if part.row is not None:
        starts[part.row] = q0
    if part.col is not None:
        starts[part.col] = k0
    return lax.dynamic_update_slice(x, lax.transpose(block, np.argsort(part.order)), starts)


def whole_shape(block: tuple[int, ...], part: Part, grid: Grid) -> tuple[int, ...]:
    """The shape of a result from the shape of its blocks."""
    shape = [block[axis] for axis in np.argsort(part.order)]
    if part.row is not None:
        shape[part.row] = grid.rows
    if part.col is not None:
        shape[part.col] = grid.cols
    return tuple(shape)


def block_avals(operands: Sequence[Any], parts: Sequence[Part], grid: Grid) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the operands' blocks."""
    shapes = []
    for x, part in zip(operands, parts, strict=True):
        shape = list(x.shape)
        if part.row is not None:
            shape[part.row] = grid.block_rows
        if part.col is not None:
            shape[part.col] = grid.block_cols
        shapes.append(jax.ShapeDtypeStruct([shape[axis] for axis in part.order], part.dtype(x)))
    return shapes


INDEX = jax.ShapeDtypeStruct((), np.int32)


def visits(possible: Any, certain: Any) -> list[tuple[bool, Any, Any]]:
    """For the full and then the partial blocks: (masked, how many each row has, which columns those are)."""
    xp = np if known(possible, certain) else jnp
    result = []
    for masked, table in ((False, possible & certain), (True, possible & ~certain)):
        if xp is np and not table.any():
            continue
        count = table.sum(1).astype(np.int32)
        result.append((masked, jnp.asarray(count), jnp.asarray(xp.argsort(~table, axis=1, stable=True), np.int32)))
    return result


def flat_visits(schedule: Schedule | None, grid: Grid) -> list[tuple[bool, Array, Array]]:
    """(masked, rows [n], columns [n]) of the blocks to visit on a GPU, one after the other in a loop of n steps.

    On CUDA a loop whose length isn't known while compiling copies its condition to the host before every step. So the
    full and the partial blocks are listed where the schedule is known, and otherwise all blocks are visited as partial
    ones: their masks then hide what nobody sees.
    """
    if schedule:
        possible, certain = schedule.tables
        tables = (False, possible & certain), (True, possible & ~certain)
    else:
        tables = ((True, np.ones(grid.shape, bool)),)
    visits = []
    for masked, table in tables:
        rows, cols = np.nonzero(table)
        if rows.size:
            visits.append((masked, jnp.asarray(rows, np.int32), jnp.asarray(cols, np.int32)))
    return visits


# The sum


def run_block_sum(
    *args: Array, f: Block, ins: tuple[Part, ...], outs: tuple[Part, ...], grid: Grid, schedule: Schedule | None
) -> list[Array]:
    """The loop: outside over key blocks where a result is cut along the keys, otherwise over query blocks.

    What belongs to the outer block is cut once and summed in a local accumulator; the rest is updated in place.
    """
    (possible, certain), operands = (schedule.tables, args) if schedule else (args[:2], args[2:])
    by_key = any(part.row is None and part.col is not None for part in outs)
    if by_key:
        possible, certain = possible.T, certain.T
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
        for masked, count, order in visits(possible, certain):

            def inner(step, carry, masked=masked, order=order):
                i, j = indices(order[o, step])
                blocks = cuts(operands, ins, fixed, grid, i, j)
                new = f(masked, *hidden(grid.origin(i, j)), *blocks)
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
        if part.row is not None and part.col is not None:  # every block is visited once
            return put(whole, block, part, grid, i, j)
        return put(whole, cut(whole, part, grid, i, j) + block, part, grid, i, j)

    results = spread(
        jnp.zeros(whole_shape(shape.shape, part, grid), shape.dtype) for shape, part in zip(shapes, outs, strict=True)
    )
    return lax.fori_loop(np.int32(0), np.int32(grid.shape[1 if by_key else 0]), outer, results)


def run_block_sum_flat(
    *args: Array, f: Block, ins: tuple[Part, ...], outs: tuple[Part, ...], grid: Grid, schedule: Schedule | None
) -> list[Array]:
    """``run_block_sum`` on a GPU, by the flat loops of ``flat_visits``; results are updated in place."""
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


block_sum_p = Primitive("block_sum")


def block_sum(
    f: Block,
    operands: Sequence[Array],
    ins: Sequence[Part],
    outs: Sequence[Part],
    grid: Grid,
    possible: Any,
    certain: Any,
) -> list[Array]:
    """``sum_ij f(blocks ij)`` over the blocks that ``possible`` [nq, nk] allows, gathered as ``outs`` say."""
    tables, schedule = split_schedule(possible, certain)
    return block_sum_p.bind(
        *tables, *aligned(operands), f=f, ins=tuple(ins), outs=tuple(outs), grid=grid, schedule=schedule
    )


def aligned(operands: Sequence[Array]) -> list[Array]:
    """The operands, varying over the same mesh axes inside shard_map, so that cotangents are summed where they must."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return list(operands)
    never = functools.reduce(jnp.logical_or, ((x != x).any() for x in operands)) & False
    return [lax.select(jnp.broadcast_to(never, x.shape), x, x) for x in operands]


def spread(blocks: Iterable[Array]) -> list[Array]:
    """Blocks that vary over all mesh axes inside shard_map, as loop carries must where a captured array varies."""
    never = functools.reduce(
        jnp.logical_or, ((i != i) for i in map(lax.axis_index, jax.sharding.get_abstract_mesh().manual_axes)), False
    )
    return list(blocks) if never is False else [lax.select(jnp.broadcast_to(never, x.shape), x, x) for x in blocks]


def known(*tables: Any) -> bool:
    """Whether tables are known while tracing."""
    return all(isinstance(x, np.ndarray) for x in tables)


def split_schedule(possible: Any, certain: Any) -> tuple[list[Array], Schedule | None]:
    """The tables as leading operands, or as a parameter where they are known at trace time."""
    if known(possible, certain):
        return [], Schedule(possible, certain)
    return [jnp.asarray(possible), jnp.asarray(certain)], None


def typed_like(operands: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """Abstract results that vary over every mesh axis of shard_map that an operand varies over."""

    def zeros(*operands):
        zero = sum((x != x).any() & False for x in operands)
        return [jnp.full(x.shape, zero, x.dtype) for x in results]

    return jax.make_jaxpr(zeros)(*operands).out_avals


@block_sum_p.def_abstract_eval
def _(*args, f, ins, outs, grid, schedule):
    operands = args[0 if schedule else 2 :]
    shapes = jax.eval_shape(functools.partial(f, False), INDEX, INDEX, *block_avals(operands, ins, grid))
    wholes = [
        jax.ShapeDtypeStruct(whole_shape(x.shape, part, grid), x.dtype) for x, part in zip(shapes, outs, strict=True)
    ]
    return typed_like(args, wholes)


def differentiated(args: Sequence[Any], tangents: Sequence[Any]) -> list[int]:
    """The operands that have a tangent."""
    return [n for n, t in enumerate(tangents) if type(t) is not ad.Zero and jnp.issubdtype(args[n].dtype, jnp.inexact)]


def replace(values: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """A copy of values with new ones at those places."""
    values = list(values)
    for place, value in zip(places, new, strict=True):
        values[place] = value
    return values


def block_sum_jvp(args, tangents, *, f, ins, outs, grid, schedule):
    results = block_sum_p.bind(*args, f=f, ins=ins, outs=outs, grid=grid, schedule=schedule)
    lead = 0 if schedule else 2
    active = differentiated(args[lead:], tangents[lead:])

    def tangent(masked, q0, k0, *blocks):
        primals, duals = blocks[: len(ins)], blocks[len(ins) :]

        def of_active(*active_blocks):
            return f(masked, q0, k0, *replace(primals, active, active_blocks))

        return jax.jvp(of_active, [primals[n] for n in active], list(duals))[1]

    if not active:
        return results, [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in results]
    duals = [tangents[lead + n] for n in active]
    all_ins = (*ins, *(ins[n] for n in active))
    return results, block_sum_p.bind(*args, *duals, f=tangent, ins=all_ins, outs=outs, grid=grid, schedule=schedule)


def block_sum_transpose(cotangents, *args, f, ins, outs, grid, schedule):
    lead = 0 if schedule else 2
    operands = args[lead:]
    unknown = [n for n, x in enumerate(operands) if ad.is_undefined_primal(x)]
    known = [n for n in range(len(operands)) if n not in unknown]
    given = [n for n, ct in enumerate(cotangents) if type(ct) is not ad.Zero]
    if not given:
        return [None] * lead + [ad.Zero(x.aval) if ad.is_undefined_primal(x) else None for x in operands]
    avals = block_avals([x.aval if ad.is_undefined_primal(x) else x for x in operands], ins, grid)

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
    results = [x.astype(operands[n].aval.dtype) for n, x in zip(unknown, results, strict=True)]
    return [None] * lead + replace([None] * len(operands), unknown, results)


def batch(args, axes, lead, ins):
    """Move batch axes to the front; blocks that one row of the batch needs are computed for all rows."""
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(args, axes, strict=True)]
    mapped = [axis is not None for axis in axes]
    if lead:
        possible, certain = moved[:2]
        moved[0] = possible.any(0) if mapped[0] else possible
        moved[1] = certain.all(0) if mapped[1] else certain
    in_axes = tuple(0 if m else None for m in mapped[lead:])
    parts = tuple(part.batched() if m else part for part, m in zip(ins, mapped[lead:], strict=True))
    return moved, in_axes, parts


def batched_block(f: Block, in_axes: tuple[int | None, ...]) -> Block:
    """f over a leading axis of some of its operands."""

    def mapped(masked, q0, k0, *blocks):
        return jax.vmap(functools.partial(f, masked, q0, k0), in_axes=in_axes)(*blocks)

    return mapped


def block_sum_batch(args, axes, *, f, ins, outs, grid, schedule):
    args, in_axes, ins = batch(args, axes, 0 if schedule else 2, ins)
    if all(axis is None for axis in in_axes):  # only the schedule had the axis
        results = block_sum_p.bind(*args, f=f, ins=ins, outs=outs, grid=grid, schedule=schedule)
        return results, [None] * len(results)
    outs = tuple(part.batched() for part in outs)
    results = block_sum_p.bind(*args, f=batched_block(f, in_axes), ins=ins, outs=outs, grid=grid, schedule=schedule)
    return results, [0] * len(results)


def lowered(run: Callable[..., list[Array]]) -> Callable[..., Any]:
    """The lowering of a loop, traced without the mesh axes that its operands vary over under shard_map.

    Inside a loop those would have to agree everywhere; the abstract results carry them.
    """
    rule = mlir.lower_fun(run, multiple_results=True)

    def lower(context, *args, **params):
        avals_in, avals_out = (
            [ShapedArray(x.shape, x.dtype) for x in avals] for avals in (context.avals_in, context.avals_out)
        )
        return rule(context.replace(avals_in=avals_in, avals_out=avals_out), *args, **params)

    return lower


def define(primitive: Primitive, run: Callable[..., list[Array]]) -> None:
    """Evaluation of a primitive, compiled for whatever platform there is, and its lowering for most of them."""

    def evaluate(*args, **params):
        with jax.disable_jit(False):  # else, where it is disabled, the primitive would evaluate itself without end
            return jax.jit(functools.partial(primitive.bind, **params))(*args)

    primitive.multiple_results = True
    primitive.def_impl(evaluate)
    mlir.register_lowering(primitive, lowered(run))


def register(
    primitive: Primitive, run: Callable[..., list[Array]], flat: Callable[..., list[Array]], batcher: Callable[..., Any]
) -> None:
    """Evaluation, lowering (``flat`` on GPUs) and vmap of a primitive that is a loop."""
    define(primitive, run)
    mlir.register_lowering(primitive, lowered(flat), platform="gpu")
    batching.primitive_batchers[primitive] = batcher


register(block_sum_p, run_block_sum, run_block_sum_flat, block_sum_batch)
ad.primitive_jvps[block_sum_p] = block_sum_jvp
ad.primitive_transposes[block_sum_p] = block_sum_transpose
