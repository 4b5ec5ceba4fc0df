"""Attention block by block: what the scores and the values of a block are; ``blocks`` does the rest."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxai.attention import blocks as engine
from jaxai.attention.blocks import INDEX, Attend, Block, Grid, Part
from jaxai.attention.products import contract
from jaxai.attention.reference import Call, finite, kept, modified, with_sinks
from jaxai.typing import Array

QUERY_BLOCK, KEY_BLOCK = 256, 512


def block_length(length: int, limit: int) -> int:
    """Blocks of at most about ``limit`` that leave little of the last one empty."""
    if length <= limit:
        return max(length, 1)
    even = math.ceil(length / math.ceil(length / limit))
    return math.ceil(even / 8) * 8


def blockwise(call: Call, block_size: tuple[int, int] | None = None, kernel: Any = None) -> tuple[Array, Array]:
    """Attention and its log-sum-exp, [B, T, N, V] and [B, T, N], in O(T) memory.

    ``kernel(query, key, value) -> (out, lse)`` replaces the forward pass where a program is lowered for CUDA.
    """
    problem = Problem(call, *(block_size or (QUERY_BLOCK, KEY_BLOCK)), kernel)
    out, lse = problem.attend()
    out, lse = with_sinks(out, lse, call.sinks)
    return out.astype(call.query.dtype), lse


class Problem:
    """A call cut into blocks: its operands, how each is cut, and the functions of one block."""

    def __init__(self, call: Call, query_block: int, key_block: int, kernel: Any = None):
        _, T, S, _, _ = call.sizes
        bq, bk = block_length(T, query_block), block_length(S, key_block)
        self.call = call
        self.vendor = kernel and (
            lambda *operands: kernel(*(x[:, :n] for x, n in zip(operands[:3], (T, S, S), strict=True)))
        )
        self.grid = grid = Grid(math.ceil(T / bq) * bq, math.ceil(S / bk) * bk, bq, bk)
        self.leaves, self.treedef = jax.tree.flatten(call.mask)
        axes = [] if call.mask is None else call.mask.leaf_axes()
        self.cut_leaves = [n for n, pair in enumerate(axes) if pair != (None, None)]
        leaf_parts = [
            Part(*(None if axis is None else axis + leaf.ndim for axis in pair), tuple(range(leaf.ndim)))
            for leaf, pair in zip(self.leaves, axes, strict=True)
        ]
        query, key = Part(1, None, (0, 2, 1, 3)), Part(None, 1, (0, 2, 3, 1))
        operands = [x.astype(call.dtype) for x in (call.query, call.key, call.value)]
        parts = [query, key, key]
        if call.bias is not None:
            cut = (axis if call.bias.shape[axis] > 1 else None for axis in (2, 3))
            operands, parts = [*operands, call.bias], [*parts, Part(*cut, (0, 1, 2, 3))]
        self.first_leaf = len(parts)
        operands += [self.leaves[n] for n in self.cut_leaves]
        parts += [leaf_parts[n] for n in self.cut_leaves]
        self.operands = [padded(x, part, grid) for x, part in zip(operands, parts, strict=True)]
        self.parts = parts
        self.outs = query, Part(1, None, (0, 2, 1))
        self.possible, self.certain = self.schedule()

    def schedule(self) -> tuple[Any, Any]:
        """Which blocks may have visible entries, and which have nothing else, [nq, nk]."""
        B, T, S, N, _ = self.call.sizes
        grid, call = self.grid, self.call
        possible = certain = np.ones(grid.shape, bool)
        if call.mask is not None:
            b, n = np.arange(B)[:, None, None, None], np.arange(N)[None, :, None, None]
            q, k = np.arange(T) + call.query_offset, np.arange(S) + call.key_offset
            possible, certain = call.mask.blocks(b, n, q, k, grid.block_rows, grid.block_cols)
        if grid.cols > S:
            certain = certain & (np.arange(grid.shape[1]) < grid.shape[1] - 1)[None]
        return possible, certain

    def indices(self, q0: Array, k0: Array) -> tuple[Array, Array, Array, Array]:
        """b, n, q and k of a block, each of rank 4."""
        B, _, _, N, _ = self.call.sizes
        b, n = jnp.arange(B, dtype=np.int32)[:, None, None, None], jnp.arange(N, dtype=np.int32)[None, :, None, None]
        q = q0 + self.call.query_offset + jnp.arange(self.grid.block_rows, dtype=np.int32)
        k = k0 + self.call.key_offset + jnp.arange(self.grid.block_cols, dtype=np.int32)
        return b, n, q[None, None, :, None], k[None, None, None]

    def score(self, masked: bool, q0: Array, k0: Array, *blocks: Array) -> Array:
        """Scores [B, N, t, s] of a block, -inf where nothing is to be seen."""
        call, indices = self.call, self.indices(q0, k0)
        _, _, S, N, K = call.sizes
        query, key, value = blocks[:3]
        if masked:
            query, nan_query = finite(query, -1)
            key, nan_key = finite(key, -2)
            nan = jnp.repeat(nan_key + finite(value, -2)[1], N // K, 1)[:, :, None] + nan_query[..., None]
        scores = self.product("ts", query * call.dtype.type(call.scale), key)
        scores = modified(scores, call, None if call.bias is None else blocks[3], indices)
        if masked:
            visible = indices[3] - call.key_offset < S
            if call.mask is not None:
                leaves = engine.replace(self.leaves, self.cut_leaves, blocks[self.first_leaf :][: len(self.cut_leaves)])
                visible = visible & jax.tree.unflatten(self.treedef, leaves).block(*indices)
            scores = jnp.where(visible, scores + nan, -jnp.inf)
        return scores

    def weigh(self, masked: bool, q0: Array, k0: Array, weights: Array, *blocks: Array) -> Array:
        """Values [B, N, t, V] summed with weights [B, N, t, s]."""
        call = self.call
        value = finite(blocks[2], -2)[0] if masked else blocks[2]
        if call.dropout_rate:
            weights = weights * kept(call, *self.indices(q0, k0))
        return self.product("th", weights, value)

    def product(self, result: str, x: Array, y: Array) -> Array:
        """A product of the query heads' x [B, N, ...] and the key heads' y [B, K, ...]."""
        B, N, t = x.shape[:3]
        K = y.shape[1]
        x = x.reshape(B, K, N // K * t, -1)
        inputs = jnp.result_type(self.call.query, self.call.key, self.call.value)
        return contract(result, x, y, self.call.precision, inputs).reshape(B, N, t, -1)

    def attend(self) -> list[Array]:
        """Attention [B, T, N, V] and its log-sum-exp [B, T, N]."""
        avals = engine.block_avals(self.operands, self.parts, self.grid)
        score, captured = hoisted(self.score, [INDEX, INDEX, *avals])
        weights = jax.eval_shape(lambda *args: score(False, *args), INDEX, INDEX, *avals, *captured)
        count = len(avals)
        weigh, captured_weigh = hoisted(self.weigh, [INDEX, INDEX, weights, *avals])
        operands = [*self.operands, *captured, *captured_weigh]
        whole = [Part(None, None, tuple(range(jnp.ndim(x)))) for x in [*captured, *captured_weigh]]
        middle = count + len(captured)

        def weigh_blocks(masked, q0, k0, weights, *blocks):
            return weigh(masked, q0, k0, weights, *blocks[:count], *blocks[middle:])

        def score_blocks(masked, q0, k0, *blocks):
            return score(masked, q0, k0, *blocks[:middle])

        scored = tuple(n for n in range(middle) if n != 2)
        f = Attend(score_blocks, weigh_blocks, scored, (2, *range(middle, len(operands))), self.vendor)
        parts = [*self.parts, *whole]
        out, lse = engine.attend(f, operands, parts, self.outs, self.grid, self.possible, self.certain)
        T = self.call.query.shape[1]
        return [out[:, :T], lse[:, :T]]


def padded(x: Array, part: Part, grid: Grid) -> Array:
    """x with zeros up to whole blocks."""
    width = [(0, 0)] * x.ndim
    if part.row is not None:
        width[part.row] = 0, grid.rows - x.shape[part.row]
    if part.col is not None:
        width[part.col] = 0, grid.cols - x.shape[part.col]
    return jnp.pad(x, width) if any(after for _, after in width) else x


def hoisted(f: Callable[..., Array], avals: list[Any]) -> tuple[Block, list[Array]]:
    """f(masked, *args) as a function of the arrays that it captures too: f(masked, *args, *captured)."""
    closed = [jax.make_jaxpr(lambda *args, masked=masked: f(masked, *args))(*avals) for masked in (False, True)]
    first = len(closed[0].consts)

    def run(masked, *args):
        args, captured = args[: len(avals)], args[len(avals) :]
        jaxpr = closed[masked].jaxpr
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, captured[first:] if masked else captured[:first]))(*args)[0]

    return run, [*closed[0].consts, *closed[1].consts]
