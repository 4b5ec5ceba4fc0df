"""The score matrix cut into blocks: which part of each array belongs to a block, and which blocks are visited."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxai.typing import Array

Block = Callable[..., Any]
"""``f(masked, q0, k0, *blocks) -> blocks``: ``masked`` says whether the block has masked entries, q0 and k0 are its
first row and its first column."""

INDEX = jax.ShapeDtypeStruct((), np.int32)


@dataclasses.dataclass(frozen=True)
class Part:
    """How one operand or result is cut into blocks.

    ``row`` and ``col`` are its axes along the queries and the keys, None where it has no such axis; ``order`` is the
    order of the axes inside a block, so that arrays stay BTNH while blocks are ready for a matrix product. Blocks of
    floats are at least float32 if ``widened``, as attention's own arrays are; arrays that a user's function captures
    keep their dtype.
    """

    row: int | None
    col: int | None
    order: tuple[int, ...]
    widened: bool = True

    def batched(self) -> "Part":
        """The part of an array with one more leading axis."""
        row, col = (None if axis is None else axis + 1 for axis in (self.row, self.col))
        return dataclasses.replace(self, row=row, col=col, order=(0, *(axis + 1 for axis in self.order)))

    def dtype(self, x: Any) -> Any:
        """The dtype of an operand's blocks."""
        return wide(x.dtype) if self.widened else x.dtype


def uncut(x: Any) -> Part:
    """The part of an array that each block gets whole and in its own dtype."""
    return Part(None, None, tuple(range(jnp.ndim(x))), widened=False)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Rows and columns of the score matrix and of its blocks; blocks divide them."""

    rows: int
    cols: int
    block_rows: int
    block_cols: int

    def taller(self, factor: int) -> "Grid":
        """The grid whose blocks have ``factor`` times as many rows."""
        return dataclasses.replace(self, block_rows=factor * self.block_rows)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of blocks along the queries and along the keys."""
        return self.rows // self.block_rows, self.cols // self.block_cols

    def origin(self, i: Any, j: Any) -> tuple[Array, Array]:
        """First row and column of a block, int32 also where x64 makes loop counters int64."""
        return jnp.int32(i) * self.block_rows, jnp.int32(j) * self.block_cols


class Schedule:
    """Which blocks are ``nonempty`` (may have visible entries) and which ``full`` (have no other), known at trace time.

    Both tables are [nq, nk].
    """

    def __init__(self, nonempty: np.ndarray, full: np.ndarray):
        self.tables = nonempty, full

    def __repr__(self) -> str:
        return f"Schedule({self.tables[0].sum()} of {self.tables[0].size} blocks)"


def known(*tables: Any) -> bool:
    """Whether tables are known while tracing."""
    return all(isinstance(x, np.ndarray) for x in tables)


def split_schedule(nonempty: Any, full: Any) -> tuple[list[Array], Schedule | None]:
    """The tables as leading operands, or as a parameter where they are known at trace time."""
    if known(nonempty, full):
        return [], Schedule(nonempty, full)
    return [jnp.asarray(nonempty), jnp.asarray(full)], None


# Blocks of arrays


def wide(dtype: Any) -> Any:
    """The dtype of sums: for floats at least float32."""
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
    """Block (i, j) of each operand, taken from ``fixed`` where that has it."""
    return [
        cut(x, part, grid, i, j) if block is None else block
        for x, part, block in zip(operands, parts, fixed, strict=True)
    ]


def put(x: Array, block: Array, part: Part, grid: Grid, i: Any, j: Any) -> Array:
    """Write block (i, j) of a result."""
    starts: list[Any] = [np.int32(0)] * x.ndim
    q0, k0 = grid.origin(i, j)
    if part.row is not None:
        starts[part.row] = q0
    if part.col is not None:
        starts[part.col] = k0
    return lax.dynamic_update_slice(x, lax.transpose(block, np.argsort(part.order)), starts)


def padded(x: Array, part: Part, grid: Grid) -> Array:
    """x, filled with zeros up to a whole number of blocks."""
    width = [(0, 0)] * x.ndim
    if part.row is not None:
        width[part.row] = 0, grid.rows - x.shape[part.row]
    if part.col is not None:
        width[part.col] = 0, grid.cols - x.shape[part.col]
    return jnp.pad(x, width) if any(after for _, after in width) else x


def no_hoist(origin: tuple[Array, Array]) -> tuple[Array, Array]:
    """The origin behind an optimization barrier, so that XLA computes positions inside the loop.

    Hoisted out of it they become small arrays, and LLVM's AVX-512 backend aborts the process on some of their loads
    (float64, causal: "Cannot select: X86ISD::SUBV_BROADCAST_LOAD", jaxlib 0.12.0).
    """
    return lax.optimization_barrier(origin)


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


# The order of blocks


def visits(nonempty: Any, full: Any) -> list[tuple[bool, Any, Any]]:
    """For the full blocks and then for the partial ones: (masked, their number in each row, their columns)."""
    xp = np if known(nonempty, full) else jnp
    result = []
    for masked, table in ((False, nonempty & full), (True, nonempty & ~full)):
        if xp is np and not table.any():
            continue
        count = table.sum(1).astype(np.int32)
        result.append((masked, jnp.asarray(count), jnp.asarray(xp.argsort(~table, axis=1, stable=True), np.int32)))
    return result


def flat_visits(schedule: Schedule | None, grid: Grid) -> list[tuple[bool, Array, Array]]:
    """(masked, rows [n], columns [n]) of the blocks that a loop of n steps visits on a GPU.

    On CUDA a loop whose length isn't known while compiling copies its condition to the host before each step. So the
    full and the partial blocks are listed if the schedule is known; otherwise all blocks are visited as partial ones,
    and their masks hide what is invisible.
    """
    if schedule:
        nonempty, full = schedule.tables
        tables = (False, nonempty & full), (True, nonempty & ~full)
    else:
        tables = ((True, np.ones(grid.shape, bool)),)
    visits = []
    for masked, table in tables:
        rows, cols = np.nonzero(table)
        if rows.size:
            visits.append((masked, jnp.asarray(rows, np.int32), jnp.asarray(cols, np.int32)))
    return visits


# vmap


def batched_operands(args: Sequence[Array], axes: Sequence[int | None], lead: int, ins: Sequence[Part]) -> tuple:
    """Operands with their batch axes in front, the axes of all but the ``lead`` tables, and the operands' parts.

    A block that one row of the batch needs is computed for all rows.
    """
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(args, axes, strict=True)]
    mapped = [axis is not None for axis in axes]
    if lead:
        nonempty, full = moved[:2]
        moved[0] = nonempty.any(0) if mapped[0] else nonempty
        moved[1] = full.all(0) if mapped[1] else full
    in_axes = tuple(0 if m else None for m in mapped[lead:])
    parts = tuple(part.batched() if m else part for part, m in zip(ins, mapped[lead:], strict=True))
    return moved, in_axes, parts


def batched_block(f: Block, in_axes: tuple[int | None, ...]) -> Block:
    """f over a leading axis of some of its operands."""

    def mapped(masked, q0, k0, *blocks):
        return jax.vmap(functools.partial(f, masked, q0, k0), in_axes=in_axes)(*blocks)

    return mapped
