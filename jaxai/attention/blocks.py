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
import math
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
    order of the axes inside a block, so that arrays stay BTNH while blocks are ready for a matrix product.
    """

    row: int | None
    col: int | None
    order: tuple[int, ...]

    def batched(self) -> "Part":
        """The same with a new leading axis."""
        row, col = (None if axis is None else axis + 1 for axis in (self.row, self.col))
        return Part(row, col, (0, *(axis + 1 for axis in self.order)))


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


def cut(x: Array, part: Part, grid: Grid, i: Any, j: Any) -> Array:
    """Block (i, j) of an operand."""
    q0, k0 = grid.origin(i, j)
    if part.row is not None:
        x = lax.dynamic_slice_in_dim(x, q0, grid.block_rows, part.row)
    if part.col is not None:
        x = lax.dynamic_slice_in_dim(x, k0, grid.block_cols, part.col)
    return lax.transpose(x, part.order)


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
        shapes.append(jax.ShapeDtypeStruct([shape[axis] for axis in part.order], x.dtype))
    return shapes


INDEX = jax.ShapeDtypeStruct((), np.int32)


def visits(possible: Any, certain: Any) -> list[tuple[bool, Any, Any]]:
    """For the full and then the partial blocks: (masked, how many each row has, which columns those are)."""
    xp = np if isinstance(possible, np.ndarray) and isinstance(certain, np.ndarray) else jnp
    result = []
    for masked, table in ((False, possible & certain), (True, possible & ~certain)):
        if xp is np and not table.any():
            continue
        count = table.sum(1).astype(np.int32)
        result.append((masked, jnp.asarray(count), jnp.asarray(xp.argsort(~table, axis=1, stable=True), np.int32)))
    return result


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

        fixed = [
            cut(x, part, grid, *indices(0)) if getattr(part, inner_axis) is None else None
            for x, part in zip(operands, ins, strict=True)
        ]
        carry = spread(
            jnp.zeros(shape.shape, shape.dtype) if is_local else result
            for shape, result, is_local in zip(shapes, results, local, strict=True)
        )
        for masked, count, order in visits(possible, certain):

            def inner(step, carry, masked=masked, order=order):
                i, j = indices(order[o, step])
                blocks = [
                    cut(x, part, grid, i, j) if block is None else block
                    for x, part, block in zip(operands, ins, fixed, strict=True)
                ]
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


block_sum_p = Primitive("block_sum")
block_sum_p.multiple_results = True


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


def split_schedule(possible: Any, certain: Any) -> tuple[list[Array], Schedule | None]:
    """The tables as leading operands, or as a parameter where they are known at trace time."""
    if isinstance(possible, np.ndarray) and isinstance(certain, np.ndarray):
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

        return jax.linear_transpose(linear, *(avals[n] for n in unknown))(list(given_blocks))

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


# The forward pass


@dataclasses.dataclass(frozen=True)
class Attend:
    """What one attention computes of a block.

    ``score(masked, q0, k0, *blocks)`` gives scores [..., t, s], invisible ones -inf; ``weigh(masked, q0, k0, weights,
    *blocks, room=0)`` sums the values with those weights, [..., t, V + room], the last ``room`` columns zeros.
    ``scored`` are the operands that score reads, ``weighed`` those that weigh reads; with ``any_size`` both take blocks
    of other sizes than the grid's too. ``vendor(*operands) -> (out, lse)`` is the same by the vendor's kernel on CUDA.
    """

    score: Block
    weigh: Block
    scored: tuple[int, ...]
    weighed: tuple[int, ...]
    any_size: bool = True
    vendor: Callable[..., tuple[Array, Array]] | None = None


def run_attend(
    *args: Array,
    f: Attend,
    ins: tuple[Part, ...],
    outs: tuple[Part, Part],
    grid: Grid,
    schedule: Schedule | None,
    forward: tuple[Grid, Schedule] | None,
) -> list[Array]:
    """Online softmax: over groups of query blocks, inside over the key blocks that they see."""
    (possible, certain), operands = (schedule.tables, args) if schedule else (args[:2], args[2:])
    if forward:
        grid, (possible, certain) = forward[0], forward[1].tables
    group, classes = tall_visits(possible, certain, GROUP if f.any_size else 1)
    whole = grid.taller(group)
    avals = block_avals(operands, ins, whole)
    scores = jax.eval_shape(functools.partial(f.score, False), INDEX, INDEX, *avals)
    values = jax.eval_shape(functools.partial(f.weigh, False), INDEX, INDEX, scores, *avals)
    lowest = np.finfo(scores.dtype).min
    width = values.shape[-1]
    places = np.eye(2, width + 2, width, dtype=scores.dtype).reshape(2, *[1] * (values.ndim - 1), width + 2)

    def softmax(masked: bool, q0: Array, k0: Array, *blocks: Array) -> list[Array]:
        """Maximum and sum of one block's weights [..., t], and the values weighed with them [..., t, V].

        They leave as the columns of one array, since XLA's CPU backend makes one kernel of two products and all that
        lies between them only where one array comes out.
        """
        s = f.score(masked, q0, k0, *blocks)
        maximum = jnp.maximum(s.max(-1), lowest)  # not -inf where nothing is visible
        weights = jnp.exp(s - maximum[..., None])
        weighed = f.weigh(masked, q0, k0, weights, *blocks, room=2)
        packed = weighed + maximum[..., None] * places[0] + weights.sum(-1)[..., None] * places[1]
        packed = lax.optimization_barrier(packed)
        return [packed[..., width], packed[..., width + 1], packed[..., :width]]

    def merged(old: Sequence[Array], new: Sequence[Array]) -> list[Array]:
        maximum = jnp.maximum(old[0], new[0])
        x, y = jnp.exp(old[0] - maximum), jnp.exp(new[0] - maximum)
        return [maximum, old[1] * x + new[1] * y, old[2] * x[..., None] + new[2] * y[..., None]]

    def outer(i, results):
        carry = spread(
            [
                jnp.full(scores.shape[:-1], lowest, scores.dtype),
                jnp.zeros(scores.shape[:-1], scores.dtype),
                jnp.zeros(values.shape, values.dtype),
            ]
        )
        for masked, size, count, rows, cols in classes:
            tall = grid.taller(size)
            fixed = [
                cut(x, p, tall, i, 0) if p.col is None and size == group else None
                for x, p in zip(operands, ins, strict=True)
            ]

            def inner(step, carry, masked=masked, size=size, rows=rows, cols=cols, tall=tall, fixed=fixed):
                row = 0 if size == group else rows[i, step]
                at = i * (group // size) + row, cols[i, step]
                blocks = [
                    cut(x, part, tall, *at) if block is None else block
                    for x, part, block in zip(operands, ins, fixed, strict=True)
                ]
                new = softmax(masked, *hidden(tall.origin(*at)), *blocks)
                if size == group:
                    return spread(merged(carry, new))
                axis, start = values.ndim - 2, row * tall.block_rows
                old = [lax.dynamic_slice_in_dim(x, start, tall.block_rows, axis) for x in carry]
                new = merged(old, new)
                return spread(
                    lax.dynamic_update_slice_in_dim(x, y, start, axis) for x, y in zip(carry, new, strict=True)
                )

            carry = lax.fori_loop(np.int32(0), count[i], inner, carry)
        maximum, total, weighed = carry
        safe = jnp.where(total == 0, 1, total)
        out = weighed / safe[..., None]
        lse = jnp.where(total == 0, -jnp.inf, maximum + jnp.log(safe))
        blocks = out, lse
        return [put(x, block, part, whole, i, 0) for x, block, part in zip(results, blocks, outs, strict=True)]

    shapes = [(values.shape, values.dtype), (values.shape[:-1], scores.dtype)]
    results = spread(
        jnp.zeros(whole_shape(shape, p, whole), dtype) for (shape, dtype), p in zip(shapes, outs, strict=True)
    )
    return lax.fori_loop(np.int32(0), np.int32(whole.shape[0]), outer, results)


GROUP = 8
"""Query blocks of the forward pass that are taken at once where their keys are visible to all: a power of two."""


def tall_visits(possible: Any, certain: Any, limit: int) -> tuple[int, list[tuple[bool, int, Any, Any, Any]]]:
    """How many query blocks make a group, and (masked, blocks at once, count [n], rows [n, .], columns [n, .]).

    Each of the n groups has count visits of blocks that are so many query blocks tall; the row counts them in a group.
    """
    if not (isinstance(possible, np.ndarray) and isinstance(certain, np.ndarray)):
        possible, certain = jnp.asarray(possible), jnp.asarray(certain)
        return 1, [(masked, 1, count, None, cols) for masked, count, cols in visits(possible, certain)]
    full, group = possible & certain, math.gcd(limit, possible.shape[0])
    while group > 1 and not full.reshape(-1, group, full.shape[1]).all(1).any():
        group //= 2
    left, tables, size = full.copy(), [], group
    while size:
        together = left.reshape(-1, size, left.shape[1]).all(1)
        left &= ~np.repeat(together, size, 0)
        tables.append((False, size, together))
        size //= 2
    tables.append((True, 1, possible & ~certain))
    classes = []
    for masked, size, table in tables:
        visited = [np.argwhere(x) for x in table.reshape(-1, group // size, table.shape[1])]
        longest = max(map(len, visited))
        if longest:
            order = np.stack([np.pad(x, [(0, longest - len(x)), (0, 0)]) for x in visited]).astype(np.int32)
            count = jnp.asarray([len(x) for x in visited], np.int32)
            classes.append((masked, size, count, *map(jnp.asarray, np.moveaxis(order, 2, 0))))
    return group, classes


attend_p = Primitive("attend")
attend_p.multiple_results = True


def attend(
    f: Attend,
    operands: Sequence[Array],
    ins: Sequence[Part],
    outs: tuple[Part, Part],
    grid: Grid,
    possible: Any,
    certain: Any,
    forward: tuple[Grid, Schedule] | None = None,
) -> list[Array]:
    """``[softmax(scores) values, log-sum-exp]`` of the scores that ``f`` gives block by block.

    ``outs`` say how the two results are gathered: [..., t, V] blocks and [..., t] blocks with the same leading axes.
    ``forward`` are other blocks for the forward pass; derivatives have those of ``grid``.
    """
    tables, schedule = split_schedule(possible, certain)
    params = {"f": f, "ins": tuple(ins), "outs": outs, "grid": grid, "schedule": schedule, "forward": forward}
    return attend_p.bind(*tables, *aligned(operands), **params)


@attend_p.def_abstract_eval
def _(*args, f, ins, outs, grid, schedule, forward):
    avals = block_avals(args[0 if schedule else 2 :], ins, grid)
    scores = jax.eval_shape(functools.partial(f.score, False), INDEX, INDEX, *avals)
    values = jax.eval_shape(functools.partial(f.weigh, False), INDEX, INDEX, scores, *avals)
    out = jax.ShapeDtypeStruct(whole_shape(values.shape, outs[0], grid), values.dtype)
    lse = jax.ShapeDtypeStruct(whole_shape(values.shape[:-1], outs[1], grid), scores.dtype)
    return typed_like(args, [out, lse])


def attend_jvp(args, tangents, *, f, ins, outs, grid, schedule, forward):
    """With weights p = exp(s - lse): d lse = sum_k p ds, and d out = sum_k p (ds v + dv) - (d lse) out."""
    out, lse = attend_p.bind(*args, f=f, ins=ins, outs=outs, grid=grid, schedule=schedule, forward=forward)
    lead = 0 if schedule else 2
    active = differentiated(args[lead:], tangents[lead:])
    scored = [n for n in active if n in f.scored]
    weighed = [n for n in active if n in f.weighed]
    if not active:
        return [out, lse], [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in (out, lse)]

    def tangent(masked, q0, k0, *blocks):
        primals, lse, duals = (
            blocks[: len(ins)],
            blocks[len(ins)],
            dict(zip(active, blocks[len(ins) + 1 :], strict=True)),
        )

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

    results = block_sum_p.bind(
        *args,
        lse,
        *(tangents[lead + n] for n in active),
        f=tangent,
        ins=(*ins, outs[1], *(ins[n] for n in active)),
        outs=outs if scored else outs[:1],
        grid=grid,
        schedule=schedule,
    )
    if not scored:
        return [out, lse], [*results, ad.Zero(jax.typeof(lse).to_tangent_aval())]
    dual_out, dual_lse = results
    return [out, lse], [dual_out - dual_lse[..., None] * out, dual_lse]


def attend_batch(args, axes, *, f, ins, outs, grid, schedule, forward):
    args, in_axes, ins = batch(args, axes, 0 if schedule else 2, ins)
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

    vendor = None if f.vendor is None else jax.vmap(f.vendor, in_axes=in_axes)
    batched = dataclasses.replace(f, score=score, weigh=weigh, vendor=vendor)
    results = bind(*args, f=batched, ins=ins, outs=tuple(part.batched() for part in outs))
    return results, [0, 0]


def run_vendor(*args, f, schedule, **params):
    """The vendor's kernel where it can express the call."""
    if f.vendor is None:
        return run_attend(*args, f=f, schedule=schedule, **params)
    return f.vendor(*args[0 if schedule else 2 :])


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


for primitive, run, jvp, batcher in (
    (block_sum_p, run_block_sum, block_sum_jvp, block_sum_batch),
    (attend_p, run_attend, attend_jvp, attend_batch),
):
    primitive.def_impl(lambda *args, run=run, **params: jax.jit(functools.partial(run, **params))(*args))
    mlir.register_lowering(primitive, lowered(run))
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batcher
ad.primitive_transposes[block_sum_p] = block_sum_transpose
mlir.register_lowering(attend_p, lowered(run_vendor), platform="cuda")
