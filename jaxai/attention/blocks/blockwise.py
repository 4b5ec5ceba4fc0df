"""Attention block by block: `BlockedCall` defines the scores and the values of one block.

The loops over blocks are `attend`'s and `block_sum`'s.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxai.attention._primitives import lift_captured, linear_operand
from jaxai.attention.blocks.attend import Attend, attend, tangent_sums
from jaxai.attention.blocks.block_sum import block_sum, block_sum_transpose
from jaxai.attention.blocks.grid import (
    INDEX,
    Grid,
    Part,
    Schedule,
    block_avals,
    cut,
    known,
    padded,
    split_schedule,
    uncut,
)
from jaxai.attention.blocks.products import contract
from jaxai.attention.reference import (
    Call,
    block_indices,
    dropout_mask,
    finite,
    modified,
    nan_flag,
    scaled,
    with_sinks,
)
from jaxai.typing import Array

SIZES = {512: 1.0, 256: 1.2}
"""Sizes of a block, for queries and keys, with the relative cost of a score in it (measured: 2 cores, AVX-512)."""

GPU_SIZES = 128, 1024
"""The least and the greatest size of a block on a GPU."""

GPU_BLOCK_BYTES = 2**24
"""Bytes of the scores of one block, all batches and heads, on a GPU: they and their derivatives fit into its cache."""

MIN_KEYS = 192
"""The least number of keys in a quartered block."""


def block_length(length: int, limit: int) -> int:
    """The length of blocks, at most about ``limit``, that needs little padding in the last one."""
    if length <= limit:
        return length
    even = math.ceil(length / math.ceil(length / limit))
    return math.ceil(even / 8) * 8


def block_sizes(call: Call) -> tuple[int, int]:
    """The size with the least work: small blocks skip more of a narrow mask, if it is known while tracing.

    On a GPU, the largest power of two whose scores take no more than GPU_BLOCK_BYTES.
    """
    if jax.default_backend() == "gpu":
        B, _, _, N, _ = call.sizes
        size = 2 ** int(math.log2(max(1, GPU_BLOCK_BYTES / (B * N * call.dtype.itemsize))) / 2)
        return (min(max(size, GPU_SIZES[0]), GPU_SIZES[1]),) * 2

    def work(size: int) -> float:
        blocks = grid(call, size, size)
        nonempty, _ = schedule(call, blocks)
        area = blocks.block_rows * blocks.block_cols
        return np.sum(nonempty) * area * SIZES[size] if isinstance(nonempty, np.ndarray) else 1 / size

    size = min(SIZES, key=work)
    return size, size


def grid(call: Call, query_block: int, key_block: int) -> Grid:
    """The grid with blocks of about these sizes."""
    T, S = call.sizes[1:3]
    bq, bk = block_length(T, query_block), block_length(S, key_block)
    return Grid(math.ceil(T / bq) * bq, math.ceil(S / bk) * bk, bq, bk)


def blockwise(call: Call, block_size: tuple[int, int] | None = None) -> tuple[Array, Array]:
    """Attention and its log-sum-exp, [B, T, N, V] and [B, T, N], in O(T) memory."""
    blocked = BlockedCall(call, *(block_size or block_sizes(call)))
    out, lse = blocked.attend(quartered=block_size is None)
    out, lse = with_sinks(out, lse, call.sinks)
    return out.astype(call.query.dtype), lse


def dense(call: Call) -> tuple[Array, Array]:
    """`blockwise` with the whole score matrix as one block, stored for the derivatives: fastest for short sequences."""
    _, T, S, _, _ = call.sizes
    blocked = BlockedCall(call, T, S)
    masked = not blocked.full if isinstance(blocked.full, np.ndarray) else True
    blocks = [cut(x, part, blocked.grid, 0, 0) for x, part in zip(blocked.operands, blocked.parts, strict=True)]
    zero = jnp.int32(0)
    scores = blocked.f.score(masked, zero, zero, *blocks)
    shift = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    blind = may_have_empty_rows(call)
    shift = jnp.where(shift == -jnp.inf, 0, shift) if blind else shift
    weights = jnp.exp(scores - shift)
    total = weights.sum(-1, keepdims=True)
    safe = jnp.where(total == 0, 1, total) if blind else total
    lse = shift + jnp.log(safe)
    lse = (jnp.where(total == 0, -jnp.inf, lse) if blind else lse)[..., 0]
    out = (blocked.f.weigh(masked, zero, zero, weights, *blocks) / safe).swapaxes(1, 2)
    out, lse = with_sinks(out, lse.swapaxes(1, 2), call.sinks)
    return out.astype(call.query.dtype), lse


def may_have_empty_rows(call: Call) -> bool:
    """Whether some query may see no key, as far as is known while tracing."""
    if call.bias is not None or call.score_mod is not None:
        return True
    B, T, S, N, _ = call.sizes
    indices = (x.astype(np.int32) for x in np.ogrid[:B, :N, :T, :S])
    visible = np.ones(1) if call.mask is None else call.mask.block(*indices)
    return not (isinstance(visible, np.ndarray) and visible.any(-1).all())


class BlockedCall:
    """A call cut into blocks: its arrays, how each is cut, and the functions of one block.

    Queries are cut to [B, N, t, H], keys and values to [B, K, H, s] and [B, K, V, s]: the layouts of ``products``.
    """

    def __init__(self, call: Call, query_block: int, key_block: int):
        self.call = call
        self.grid = grid(call, query_block, key_block)
        self.nonempty, self.full = schedule(call, self.grid)
        self.query_part, key_part = Part(1, None, (0, 2, 1, 3)), Part(None, 1, (0, 2, 3, 1))
        self.row_part = Part(1, None, (0, 2, 1))
        self.outs = self.query_part, self.row_part
        call = dataclasses.replace(call, sinks=None)
        partial = not (isinstance(self.full, np.ndarray) and self.full.all())
        if partial:
            call = dataclasses.replace(call, nan_flag=nan_flag(call.value))
        parts = dataclasses.replace(
            jax.tree.map(uncut, call),
            query=self.query_part,
            key=key_part,
            value=key_part,
            nan_flag=None if call.nan_flag is None else Part(None, 1, (0, 2, 1)),
        )
        if call.bias is not None:
            row, col = (axis if call.bias.shape[axis] > 1 else None for axis in (2, 3))
            parts = dataclasses.replace(parts, bias=Part(row, col, (0, 1, 2, 3)))
        if call.mask is not None:
            leaves, treedef = jax.tree.flatten(call.mask)
            cuts = [
                Part(row and row + leaf.ndim, col and col + leaf.ndim, tuple(range(leaf.ndim)))  # axes from the end
                for leaf, (row, col) in zip(leaves, call.mask.leaf_axes(), strict=True)
            ]
            parts = dataclasses.replace(parts, mask=jax.tree.unflatten(treedef, cuts))
        self.parts: list[Part] = jax.tree.leaves(parts)
        leaves, self.treedef = jax.tree.flatten(call)
        self.operands = [padded(jnp.asarray(x), part, self.grid) for x, part in zip(leaves, self.parts, strict=True)]
        names = [path[0].name for path, _ in jax.tree.leaves_with_path(call)]
        value = names.index("value")
        count = len(leaves)
        avals = block_avals(self.operands, self.parts, self.grid)
        score, captured = lift_captured(
            lambda masked, q0, k0, *blocks: self.score(masked, q0, k0, self.block(blocks)),
            [False, True] if partial else [False],
            [INDEX, INDEX, *avals],
        )
        self.operands += captured
        self.parts += map(uncut, captured)
        scored = tuple(n for n in range(len(self.operands)) if n != value)

        def weigh(masked, q0, k0, weights, *blocks, room=0):
            return self.weigh(masked, q0, k0, weights, self.block(blocks[:count]), room)

        self.f = Attend(score, weigh, scored, (value,), not captured, self.call.query.dtype)

    def block(self, blocks: Any) -> Call:
        """The call of one block."""
        return jax.tree.unflatten(self.treedef, blocks)

    def indices(self, call: Call, q0: Array, k0: Array) -> tuple[Array, Array, Array, Array]:
        """b, n, q and k of a block, each of rank 4."""
        B, _, _, N, _ = self.call.sizes
        query_offset, key_offset = call.offsets or (0, 0)
        shape = B, N, call.query.shape[2], call.key.shape[3]
        return block_indices(shape, q0 + query_offset, k0 + key_offset)

    def score(self, masked: bool, q0: Array, k0: Array, call: Call) -> Array:
        """Scores [B, N, t, s] of a block, -inf where the mask hides them."""
        indices = self.indices(call, q0, k0)
        _, T, S, N, K = self.call.sizes
        scores = self.product("ts", scaled(call.query, call), call.key, call, guarded=masked)
        if not masked:
            return modified(scores, call, call.bias, indices)
        # The last blocks are padded with zeros. Padding rows are masked too, or they might see a NaN no real row sees.
        rows, cols = (jnp.arange(size, dtype=np.int32) for size in (call.query.shape[2], call.key.shape[3]))
        visible = (rows + q0 < T)[None, None, :, None] & (cols + k0 < S)[None, None, None]
        if call.mask is not None:
            visible = visible & call.mask.block(*indices)
        if call.soft_cap is not None or call.score_mod is not None:  # their derivative at NaN times 0 is NaN
            scores = jnp.where(visible, scores, 0)
        nan = jnp.repeat(call.nan_flag, N // K, 1)[:, :, None]
        return jnp.where(visible, modified(scores, call, call.bias, indices) + nan, -jnp.inf)

    def weigh(self, masked: bool, q0: Array, k0: Array, weights: Array, call: Call, room: int = 0) -> Array:
        """Values [B, N, t, V] summed with weights [B, N, t, s], followed by ``room`` columns of zeros."""
        value = finite(call.value) if masked else call.value
        value = jnp.pad(value, [(0, 0), (0, 0), (0, room), (0, 0)]) if room else value
        if call.dropout_rate:
            weights = weights * dropout_mask(call, *self.indices(call, q0, k0))
        return self.product("th", weights, value, call, guarded=False)

    def product(self, result: str, x: Array, y: Array, call: Call, guarded: bool) -> Array:
        """A product of the query heads' x [B, N, ...] and the key heads' y [B, K, ...]."""
        B, N, t = x.shape[:3]
        K = y.shape[1]
        x = x.reshape(B, K, N // K * t, -1)
        return contract(result, x, y, call.precision, self.call.query.dtype, guarded).reshape(B, N, t, -1)

    def attend(self, quartered: bool = False) -> tuple[Array, Array]:
        """Attention [B, T, N, V] and its log-sum-exp [B, T, N]; ``quartered``: see ``quarters``."""
        blocks = self.grid, self.nonempty, self.full, self.quarters() if quartered else None
        out, lse = attend(self.f, self.operands, self.parts, self.outs, *blocks)
        T = self.call.sizes[1]
        return out[:, :T], lse[:, :T]

    def quarters(self) -> tuple[Grid, Schedule] | None:
        """The grid with half the keys and half the queries in a block, for the forward pass.

        Fewer keys are faster, and fewer queries skip more of a mask; where nothing is masked the forward pass takes up
        to 8 such blocks of queries together. None if the blocks can't be halved or the schedule isn't known yet.
        """
        rows, keys = self.grid.block_rows, self.grid.block_cols // 2
        if self.grid.block_cols % 16 or keys < MIN_KEYS or not self.f.any_size:
            return None
        if not known(self.nonempty, self.full):
            return None
        grid = dataclasses.replace(self.grid, block_rows=rows if rows % 2 else rows // 2, block_cols=keys)
        return grid, Schedule(*schedule(self.call, grid))

    def tangent(self, lse: Array, duals: dict[int, Array]) -> tuple[Array, Array]:
        """sum_k p (ds v + dv) [B, T, N, V] and sum_k p ds [B, T, N] with p = exp(s - lse), for tangents of operands."""
        active, T = list(duals), self.call.sizes[1]
        sums = tangent_sums(self.f, self.parts, self.outs, active)
        more = [padded(lse, self.row_part, self.grid)]
        more += [padded(x, self.parts[n], self.grid) for n, x in duals.items()]
        tables = self.nonempty, self.full
        found = block_sum(sums.f, [*self.operands, *more], sums.ins, sums.outs, self.grid, *tables)
        dual_out, *dual_lse = (x[:, :T] for x in found)
        return dual_out, dual_lse[0] if dual_lse else jnp.zeros_like(lse)

    def cotangents(self, lse: Array, active: Sequence[int], ct_out: Array, ct_lse: Array) -> list[Array]:
        """The transpose of ``tangent``: the cotangents of the operands whose numbers are in ``active``."""
        sums = tangent_sums(self.f, self.parts, self.outs, active)
        tables, schedule = split_schedule(self.nonempty, self.full)
        given = zip((ct_out, ct_lse), sums.outs, strict=False)
        whole = [padded(x, part, self.grid) for x, part in given]
        operands = [*tables, *self.operands, padded(lse, self.row_part, self.grid)]
        more = {"f": sums.f, "ins": sums.ins, "outs": sums.outs, "grid": self.grid, "schedule": schedule}
        linear = [linear_operand(self.operands[n]) for n in active]
        found: list[Any] = block_sum_transpose(whole, *operands, *linear, **more)[len(operands) :]
        leaves = jax.tree.leaves(self.call)
        return [x[:, : leaves[n].shape[1]] for n, x in zip(active, found, strict=True)]

    def sums(self, constant: Array) -> tuple[Array, Array]:
        """sum_k exp(s - constant) v [B, T, N, V] and sum_k exp(s - constant) [B, T, N], for constants [B, T, N]."""

        def block(masked, q0, k0, constant, *blocks):
            weights = jnp.exp(self.f.score(masked, q0, k0, *blocks) - constant[..., None])
            return [self.f.weigh(masked, q0, k0, weights, *blocks), weights.sum(-1)]

        constant = padded(jnp.where(constant == -jnp.inf, 0, constant), self.row_part, self.grid)
        operands, parts = [constant, *self.operands], [self.row_part, *self.parts]
        weighed, total = block_sum(block, operands, parts, self.outs, self.grid, self.nonempty, self.full)
        T = self.call.sizes[1]
        return weighed[:, :T], total[:, :T]


def schedule(call: Call, grid: Grid) -> tuple[Any, Any]:
    """Which blocks are nonempty and which are full, [nq, nk]: NumPy where known while tracing."""
    B, T, S, N, _ = call.sizes
    # Padded blocks are not full, and blocks that are all padding are empty.
    rows, cols = (np.arange(n) * size for n, size in zip(grid.shape, (grid.block_rows, grid.block_cols), strict=True))
    nonempty = (rows < T)[:, None] & (cols < S)[None]
    full = (rows + grid.block_rows <= T)[:, None] & (cols + grid.block_cols <= S)[None]
    if call.mask is None:
        return nonempty, full
    query_offset, key_offset = call.offsets or (0, 0)
    b, n, q, k = (np.arange(size, dtype=np.int32) for size in (B, N, T, S))
    b, n, q, k = b[:, None, None, None], n[None, :, None, None], q + query_offset, k + key_offset
    tables = call.mask.blocks(b, n, q, k, grid.block_rows, grid.block_cols)
    padding = [(0, n - m) for n, m in zip(grid.shape, tables[0].shape, strict=True)]
    visible, all_visible = ((np if isinstance(x, np.ndarray) else jnp).pad(x, padding) for x in tables)
    return nonempty & visible, full & all_visible
