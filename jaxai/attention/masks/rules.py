"""The masks of the literature: causal, windows, prefixes, chunks, segments, lengths, and any function of positions."""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jax import lax

from jaxai.attention.masks.algebra import Anywhere, Mask, Number, Pair, check, tiles, varying_axis, with_rank
from jaxai.typing import Array


class Growing(Mask):
    """A mask that shows more for a later query and less for a later key, so two corners determine a block."""

    def _blocks(self, b, n, q, k):
        (q_first, q_last), (k_first, k_last) = ends_of(q, k)
        return self._block(b, n, q_last, k_first), self._block(b, n, q_first, k_last)


@dataclass(frozen=True)
class Causal(Growing):
    """Keys up to the query: k <= q + offset (arXiv:1706.03762); offset S - T lets the last query see the last key.

    offset: an int (static), or an integer array, scalar or [B]; ValueError for others.

    >>> Causal(1).materialize(2, 3)[0, 0].astype(int).tolist()
    [[1, 1, 0], [1, 1, 1]]
    """

    offset: Number = 0

    def __post_init__(self) -> None:
        if not isinstance(self.offset, int):
            check("offset", self.offset, np.integer, (0, 1), "an int or an integer array, scalar or [B]")

    def _block(self, b, n, q, k):
        return k - q <= per_batch(self.offset)


@dataclass(frozen=True)
class SlidingWindow(Mask):
    """Keys near the query: q - left <= k <= q + right (arXiv:2004.05150).

    left, right: ints >= 0 (static), or None for no bound on that side; ValueError for others.

    >>> SlidingWindow(1, 0).materialize(3, 3)[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """

    left: int | None
    right: int | None

    def __post_init__(self) -> None:
        for name, value in (("left", self.left), ("right", self.right)):
            if value is not None and not (isinstance(value, int | np.integer) and value >= 0):
                raise ValueError(f"{name}={value!r} is no window size; give an int >= 0, or None for no bound")

    def _block(self, b, n, q, k):
        return self._within(k - q, k - q)

    def _blocks(self, b, n, q, k):
        (q_first, q_last), (k_first, k_last) = ends_of(q, k)
        least, most = k_first - q_last, k_last - q_first
        return self._within(most, least), self._within(least, most)

    def _within(self, left: Anywhere, right: Anywhere) -> Anywhere:
        near = [] if self.left is None else [left >= -self.left]
        return all_of(near + ([] if self.right is None else [right <= self.right]))


@dataclass(frozen=True)
class PrefixLM(Growing):
    """A prefix that all queries see, causal after it: k < n or k <= q (arXiv:1910.10683, figure 4).

    n: an int (static), or an integer array, scalar or [B]; ValueError for others.

    >>> PrefixLM(2).materialize(3, 3)[0, 0].astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """

    n: Number

    def __post_init__(self) -> None:
        if not isinstance(self.n, int):
            check("n", self.n, np.integer, (0, 1), "an int or an integer array, scalar or [B]")

    def _block(self, b, n, q, k):
        return (k < per_batch(self.n)) | (k <= q)


@dataclass(frozen=True)
class Chunked(Mask):
    """Keys of the query's own chunk: q // n == k // n, rounded down. n: an int >= 1 (static); ValueError for others.

    >>> (Chunked(2) & Causal()).materialize(3, 3)[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """

    n: int

    def __post_init__(self) -> None:
        if not (isinstance(self.n, int) and self.n >= 1):
            raise ValueError(f"n={self.n!r} is no chunk size; give an int >= 1")

    def _block(self, b, n, q, k):
        return q // self.n == k // self.n

    def _blocks(self, b, n, q, k):
        return compare_ranges(*ends_of(q // self.n, k // self.n))


@dataclass(frozen=True)
class Segments(Mask):
    """Keys of the query's own segment, for packed sequences: q_ids[b, q] == kv_ids[b, k] (arXiv:2107.02027).

    q_ids: integers [B, T] or [T]; kv_ids: integers [B, S] or [S]; ValueError for others. `blocks` compares the ranges
    of ids of each block.

    >>> Segments(np.array([0, 0, 1]), np.array([0, 1])).materialize(3, 2)[0, 0].astype(int).tolist()
    [[1, 0], [1, 0], [0, 1]]
    """

    q_ids: Anywhere
    kv_ids: Anywhere

    def __post_init__(self) -> None:
        check("q_ids", self.q_ids, np.integer, (1, 2), "an integer array [B, T] or [T]")
        check("kv_ids", self.kv_ids, np.integer, (1, 2), "an integer array [B, S] or [S]")

    def leaf_axes(self):
        return [(varying_axis(self.q_ids, -1), None), (None, varying_axis(self.kv_ids, -1))]

    def _block(self, b, n, q, k):
        return with_rank(self.q_ids, 2)[:, None, :, None] == with_rank(self.kv_ids, 2)[:, None, None, :]

    def _blocks(self, b, n, q, k):
        q = tiles(with_rank(self.q_ids, 2), 1, *q.shape)[:, None, :, None]
        k = tiles(with_rank(self.kv_ids, 2), 1, *k.shape)[:, None, None]
        return compare_ranges((q.min(-1), q.max(-1)), (k.min(-1), k.max(-1)))


@dataclass(frozen=True)
class Lengths(Mask):
    """Positions before the end of ragged sequences: q < query[b] and k < key[b].

    query, key: an int (static), an integer array, scalar or [B], or None for no limit; ValueError for others.

    >>> Lengths(None, np.array([1, 2])).materialize(1, 3, B=2)[:, 0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0]]
    """

    query: Number | None
    key: Number | None

    def __post_init__(self) -> None:
        for name, value in (("query", self.query), ("key", self.key)):
            if not isinstance(value, int | None):
                check(name, value, np.integer, (0, 1), "an int, an integer array, scalar or [B], or None")

    def _block(self, b, n, q, k):
        real = [] if self.query is None else [q < per_batch(self.query)]
        return all_of(real + ([] if self.key is None else [k < per_batch(self.key)]))

    def _blocks(self, b, n, q, k):
        (q_first, q_last), (k_first, k_last) = ends_of(q, k)
        return self._block(b, n, q_first, k_first), self._block(b, n, q_last, k_last)


@dataclass(frozen=True)
class FunctionMask(Mask):
    """Any rule f(b, n, q, k) on int arrays [B, 1, 1, 1], [1, N, 1, 1], ..., which may be traced (arXiv:2412.05496).

    f works elementwise, returns bools of rank 4 (ValueError for others) and may capture arrays. It is static: each new
    function object is traced anew under jit.

    >>> FunctionMask(lambda b, n, q, k: (q + k) % 2 == n).materialize(2, 2, N=2)[0].astype(int).tolist()
    [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]
    """

    f: Callable[..., Anywhere]

    def _block(self, b, n, q, k):
        visible = self.f(b, n, q, k)
        check("the result of f", visible, np.bool_, (4,), "bools of rank 4, by comparing the indices f is given")
        return visible

    def _blocks(self, b, n, q, k):
        def one(q: Array, k: Array) -> Pair:
            visible = self._block(b, n, q[None, None, :, None], k[None, None, None])
            return visible.any((2, 3)), visible.all((2, 3))

        nonempty, full = lax.map(lambda q: lax.map(lambda k: one(q, k), k), q)  # one block in memory at a time
        return nonempty.transpose(2, 3, 0, 1), full.transpose(2, 3, 0, 1)


def is_causal(mask: Mask) -> bool:
    """Whether a mask is Causal(0)."""
    return isinstance(mask, Causal) and isinstance(mask.offset, int) and mask.offset == 0


def ends_of(q: Anywhere, k: Anywhere) -> tuple[Pair, Pair]:
    """First and last position of each block, of q [nq, t] as [1, 1, nq, 1] and of k [nk, s] as [1, 1, 1, nk]."""
    q, k = q[None, None], k.T[None, None]
    return (q[..., :1], q[..., -1:]), (k[..., :1, :], k[..., -1:, :])


def compare_ranges(q: Pair, k: Pair) -> Pair:
    """Whether the ranges (least, greatest) overlap, and whether both consist of one and the same value."""
    return (q[0] <= k[1]) & (k[0] <= q[1]), (q[0] == k[1]) & (k[0] == q[1])


def all_of(conditions: list[Anywhere]) -> Anywhere:
    """The conjunction of conditions; only without any a constant array, which costs each block memory."""
    return functools.reduce(operator.and_, conditions) if conditions else np.ones((1, 1, 1, 1), bool)


def per_batch(x: Number) -> Number:
    """An integer array [B] as [B, 1, 1, 1]; a number unchanged."""
    return x if isinstance(x, int) or x.ndim == 0 else x[:, None, None, None]
