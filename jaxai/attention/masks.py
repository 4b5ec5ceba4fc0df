"""A small algebra of attention masks: what each query may see, entry by entry and block by block.

A mask is a frozen dataclass and a pytree. Python ints in it are static, so a schedule of blocks is decided with NumPy
at trace time; arrays in it are leaves. `&`, `|` and `~` combine masks, and masks with bool arrays on either side.
"""

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax, tree_util
from jaxtyping import Bool

from jaxai.typing import Array, Int

Anywhere = Array | np.ndarray
"""An array of NumPy, known while tracing, or one of JAX, perhaps traced."""

Number = int | np.integer | Anywhere
"""A Python int, which is static, or an integer array, scalar or [B], which is a leaf."""

Batches = Int[Anywhere, "#B 1 1 1"]
Heads = Int[Anywhere, "1 #N 1 1"]
type Pair = tuple[Anywhere, Anywhere]


class Mask(ABC):
    """What query q of head n in batch b sees of the keys; the base of all masks. Scores are [B, N, T, S].

    A bool array on the left of `&` or `|`, NumPy's or JAX's, gives way to the mask on its right.
    """

    __array_ufunc__ = None  # NumPy's operators then leave `array & mask` to `__rand__`; JAX's do so by themselves

    def __init_subclass__(cls) -> None:
        tree_util.register_pytree_with_keys(cls, cls._flatten, cls._unflatten)

    def _flatten(self) -> tuple[list, tuple]:
        """Arrays and masks are children; ints, None and functions are static."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        found = tuple(x for x, v in values.items() if not (isinstance(v, int | None) or callable(v)))
        # What JAX rebuilt keeps its structure whatever was put in: `tree.map(lambda _: 0, mask)` serves as `in_axes`.
        children = vars(self).get("_children", found)
        static = tuple((x, v) for x, v in values.items() if x not in children)
        return [(tree_util.GetAttrKey(x), values[x]) for x in children], (children, static)

    @classmethod
    def _unflatten(cls, aux: tuple, values: Iterable) -> Any:
        """Without `__init__`, which would reject the placeholders that JAX puts in."""
        children, static = aux
        mask = object.__new__(cls)
        vars(mask).update(zip(children, values, strict=True), _children=children, **dict(static))
        return mask

    @abstractmethod
    def _block(self, b: Anywhere, n: Anywhere, q: Anywhere, k: Anywhere) -> Anywhere:
        """What `block` returns."""

    @abstractmethod
    def _blocks(self, b: Anywhere, n: Anywhere, q: Anywhere, k: Anywhere) -> Pair:
        """`blocks` of every batch and head, two [B|1, N|1, nq|1, nk|1], from the positions q [nq, t] and k [nk, s]."""

    def block(
        self, b: Batches, n: Heads, q: Int[Anywhere, "1 1 #t 1"], k: Int[Anywhere, "1 1 1 #s"]
    ) -> Bool[Anywhere, "#B #N #t #s"]:
        """The visible entries of one block: bool, of rank 4, with axes of size 1 where nothing varies.

        b, n, q, k (int32) are the block's batches, heads and positions, which may start anywhere. Array leaves hold the
        block's part alone, cut along `leaf_axes`, so nothing is gathered here.
        """
        return self._block(b, n, q, k)

    def leaf_axes(self) -> list[tuple[int | None, int | None]]:
        """The query axis and key axis of each array leaf, counted from the end; None where it has none or of size 1.

        >>> Segments(np.array([[0, 0, 1]]), np.array([[0, 1, 1, 1]])).leaf_axes()
        [(-1, None), (None, -1)]
        """
        children = [value for _, value in self._flatten()[0]]
        axes = [child.leaf_axes() if isinstance(child, Mask) else [(None, None)] for child in children]
        return [pair for pairs in axes for pair in pairs]

    def blocks(
        self, b: Batches, n: Heads, q: Int[Anywhere, " T"], k: Int[Anywhere, " S"], query_block: int, key_block: int
    ) -> tuple[Bool[Anywhere, "nq nk"], Bool[Anywhere, "nq nk"]]:
        """Which blocks may have a visible entry in any batch and head, and which are visible throughout in all.

        q and k are all positions, contiguous and increasing; nq = ceil(T / query_block), and the last block may be
        ragged. A block that isn't possible has no visible entry, a certain one no masked entry. That is exact but for
        combinations and for `Segments` with ids that fall or skip. The results are NumPy arrays if positions and mask
        are known while tracing; `FunctionMask` is always evaluated at run time.

        >>> index, one = np.arange(4), np.zeros((1, 1, 1, 1), int)
        >>> possible, certain = Causal().blocks(one, one, index, index, 2, 2)
        >>> possible.tolist(), certain.tolist()
        ([[True, False], [True, True]], [[False, False], [True, False]])
        """
        nq, nk = -(-q.shape[0] // query_block), -(-k.shape[0] // key_block)
        possible, certain = self._blocks(b, n, _tiles(q, 0, nq, query_block), _tiles(k, 0, nk, key_block))
        full = np.ones((nq, nk), bool)
        return possible.any((0, 1)) & full, certain.all((0, 1)) & full

    def materialize(self, T: int, S: int, B: int = 1, N: int = 1) -> Bool[Array, "{B} {N} {T} {S}"]:
        """The whole mask as a bool array [B, N, T, S], for tests and small uses.

        >>> (~Causal() | np.array([True, False, False])).materialize(3, 3)[0, 0].astype(int).tolist()
        [[1, 1, 1], [1, 0, 1], [1, 0, 0]]
        """
        b, n, q, k = (x.astype(np.int32) for x in np.ogrid[:B, :N, :T, :S])
        return jnp.broadcast_to(self.block(b, n, q, k), (B, N, T, S))

    def __and__(self, other: "Mask | Anywhere") -> "Mask":
        return And(self, as_mask(other))

    def __rand__(self, other: Anywhere) -> "Mask":
        return And(as_mask(other), self)

    def __or__(self, other: "Mask | Anywhere") -> "Mask":
        return Or(self, as_mask(other))

    def __ror__(self, other: Anywhere) -> "Mask":
        return Or(as_mask(other), self)

    def __invert__(self) -> "Mask":
        return Not(self)


def as_mask(x: Mask | Anywhere) -> Mask:
    """A mask as it is, a bool array as an `ArrayMask`. Raises ValueError for anything else."""
    if isinstance(x, Mask):
        return x
    if isinstance(x, Anywhere):
        return ArrayMask(x)
    raise ValueError(f"x={x!r} is no mask; give a Mask or a bool array that broadcasts to [B, N, T, S]")


class _Growing(Mask):
    """A mask that shows more for a later query and less for a later key: two corners tell all of a block."""

    def _blocks(self, b, n, q, k):
        (q_first, q_last), (k_first, k_last) = _ends(q, k)
        return self._block(b, n, q_last, k_first), self._block(b, n, q_first, k_last)


@dataclass(frozen=True)
class Causal(_Growing):
    """Keys up to the query: k <= q + offset (arXiv:1706.03762); offset S - T lets the last query see the last key.

    offset: an int (static), or an integer array, scalar or [B]; ValueError for others.

    >>> Causal(1).materialize(2, 3)[0, 0].astype(int).tolist()
    [[1, 1, 0], [1, 1, 1]]
    """

    offset: Number = 0

    def __post_init__(self) -> None:
        if not isinstance(self.offset, int):
            _check("offset", self.offset, np.integer, (0, 1), "an int or an integer array, scalar or [B]")

    def _block(self, b, n, q, k):
        return k - q <= _per_batch(self.offset)


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
        (q_first, q_last), (k_first, k_last) = _ends(q, k)
        least, most = k_first - q_last, k_last - q_first
        return self._within(most, least), self._within(least, most)

    def _within(self, left: Anywhere, right: Anywhere) -> Anywhere:
        near = [] if self.left is None else [left >= -self.left]
        return _all(near + ([] if self.right is None else [right <= self.right]))


@dataclass(frozen=True)
class PrefixLM(_Growing):
    """A prefix that all see, causal after it: k < n or k <= q (arXiv:1910.10683, figure 4).

    n: an int (static), or an integer array, scalar or [B]; ValueError for others.

    >>> PrefixLM(2).materialize(3, 3)[0, 0].astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """

    n: Number

    def __post_init__(self) -> None:
        if not isinstance(self.n, int):
            _check("n", self.n, np.integer, (0, 1), "an int or an integer array, scalar or [B]")

    def _block(self, b, n, q, k):
        return (k < _per_batch(self.n)) | (k <= q)


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
        return _compare_ranges(*_ends(q // self.n, k // self.n))


@dataclass(frozen=True)
class Segments(Mask):
    """Keys of the query's own segment, for packed sequences: q_ids[b, q] == kv_ids[b, k] (arXiv:2107.02027).

    q_ids: integers [B, T] or [T]; kv_ids: integers [B, S] or [S]; ValueError for others. `blocks` compares the least
    and the greatest id of each block.

    >>> Segments(np.array([0, 0, 1]), np.array([0, 1])).materialize(3, 2)[0, 0].astype(int).tolist()
    [[1, 0], [1, 0], [0, 1]]
    """

    q_ids: Anywhere
    kv_ids: Anywhere

    def __post_init__(self) -> None:
        _check("q_ids", self.q_ids, np.integer, (1, 2), "an integer array [B, T] or [T]")
        _check("kv_ids", self.kv_ids, np.integer, (1, 2), "an integer array [B, S] or [S]")

    def leaf_axes(self):
        return [(_axis(self.q_ids, -1), None), (None, _axis(self.kv_ids, -1))]

    def _block(self, b, n, q, k):
        return _with_rank(self.q_ids, 2)[:, None, :, None] == _with_rank(self.kv_ids, 2)[:, None, None, :]

    def _blocks(self, b, n, q, k):
        q = _tiles(_with_rank(self.q_ids, 2), 1, *q.shape)[:, None, :, None]
        k = _tiles(_with_rank(self.kv_ids, 2), 1, *k.shape)[:, None, None]
        return _compare_ranges((q.min(-1), q.max(-1)), (k.min(-1), k.max(-1)))


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
                _check(name, value, np.integer, (0, 1), "an int, an integer array, scalar or [B], or None")

    def _block(self, b, n, q, k):
        real = [] if self.query is None else [q < _per_batch(self.query)]
        return _all(real + ([] if self.key is None else [k < _per_batch(self.key)]))

    def _blocks(self, b, n, q, k):
        (q_first, q_last), (k_first, k_last) = _ends(q, k)
        return self._block(b, n, q_first, k_first), self._block(b, n, q_last, k_last)


@dataclass(frozen=True)
class ArrayMask(Mask):
    """A mask written out: bools that broadcast to [B, N, T, S], missing leading axes added; ValueError for others.

    >>> ArrayMask(np.array([[True], [False]])).materialize(2, 2)[0, 0].tolist()
    [[True, True], [False, False]]
    """

    array: Anywhere

    def __post_init__(self) -> None:
        wanted = "a bool array that broadcasts to [B, N, T, S], by a comparison or .astype(bool)"
        _check("array", self.array, np.bool_, (0, 1, 2, 3, 4), wanted)

    def leaf_axes(self):
        return [(_axis(self.array, -2), _axis(self.array, -1))]

    def _block(self, b, n, q, k):
        return _with_rank(self.array, 4)

    def _blocks(self, b, n, q, k):
        rows = _tiles(_with_rank(self.array, 4), 2, *q.shape)
        return _tiles(rows.any(3), 3, *k.shape).any(4), _tiles(rows.all(3), 3, *k.shape).all(4)


@dataclass(frozen=True)
class FunctionMask(Mask):
    """Any rule: f(b, n, q, k) on int arrays [B, 1, 1, 1], [1, N, 1, 1], ..., perhaps traced (arXiv:2412.05496).

    f works elementwise, returns bools of rank 4 (ValueError for others) and may capture arrays. It is static: under jit
    a new function object is a new trace.

    >>> FunctionMask(lambda b, n, q, k: (q + k) % 2 == n).materialize(2, 2, N=2)[0].astype(int).tolist()
    [[[1, 0], [0, 1]], [[0, 1], [1, 0]]]
    """

    f: Callable[..., Anywhere]

    def _block(self, b, n, q, k):
        visible = self.f(b, n, q, k)
        _check("the result of f", visible, np.bool_, (4,), "bools of rank 4, by comparing the indices f is given")
        return visible

    def _blocks(self, b, n, q, k):
        def one(q: Array, k: Array) -> Pair:
            visible = self._block(b, n, q[None, None, :, None], k[None, None, None])
            return visible.any((2, 3)), visible.all((2, 3))

        possible, certain = lax.map(lambda q: lax.map(lambda k: one(q, k), k), q)  # one block in memory at a time
        return possible.transpose(2, 3, 0, 1), certain.transpose(2, 3, 0, 1)


@dataclass(frozen=True)
class And(Mask):
    """What both masks show: `left & right`."""

    left: Mask
    right: Mask

    def _block(self, b, n, q, k):
        return self.left.block(b, n, q, k) & self.right.block(b, n, q, k)

    def _blocks(self, b, n, q, k):
        left, right = self.left._blocks(b, n, q, k), self.right._blocks(b, n, q, k)
        return left[0] & right[0], left[1] & right[1]


@dataclass(frozen=True)
class Or(Mask):
    """What either mask shows: `left | right`."""

    left: Mask
    right: Mask

    def _block(self, b, n, q, k):
        return self.left.block(b, n, q, k) | self.right.block(b, n, q, k)

    def _blocks(self, b, n, q, k):
        left, right = self.left._blocks(b, n, q, k), self.right._blocks(b, n, q, k)
        return left[0] | right[0], left[1] | right[1]


@dataclass(frozen=True)
class Not(Mask):
    """What the mask hides: `~mask`."""

    mask: Mask

    def _block(self, b, n, q, k):
        return ~self.mask.block(b, n, q, k)

    def _blocks(self, b, n, q, k):
        possible, certain = self.mask._blocks(b, n, q, k)
        return ~certain, ~possible


def conjuncts(mask: Mask | None) -> list[Mask]:
    """The masks that all must show an entry."""
    if isinstance(mask, And):
        return [*conjuncts(mask.left), *conjuncts(mask.right)]
    return [] if mask is None else [mask]


def is_causal(mask: Mask) -> bool:
    """Whether a mask is Causal(0)."""
    return isinstance(mask, Causal) and isinstance(mask.offset, int) and mask.offset == 0


def _tiles(x: Anywhere, axis: int, count: int, size: int) -> Anywhere:
    """`axis` as [count, size], the end filled with the last entry; [count, 1] if there is but one entry."""
    size = max(1, min(size, x.shape[axis]))
    return x.take(np.arange(count * size).reshape(count, size), axis, mode="clip")


def _ends(q: Anywhere, k: Anywhere) -> tuple[Pair, Pair]:
    """First and last of each block, of q [nq, t] as [1, 1, nq, 1] and of k [nk, s] as [1, 1, 1, nk]."""
    q, k = q[None, None], k.T[None, None]
    return (q[..., :1], q[..., -1:]), (k[..., :1, :], k[..., -1:, :])


def _compare_ranges(q: Pair, k: Pair) -> Pair:
    """Whether the ranges (least, greatest) overlap, and whether both are one and the same value."""
    return (q[0] <= k[1]) & (k[0] <= q[1]), (q[0] == k[1]) & (k[0] == q[1])


def _all(conditions: list[Anywhere]) -> Anywhere:
    """All of them; only without any a constant array, which every block has to carry."""
    return functools.reduce(operator.and_, conditions) if conditions else np.ones((1, 1, 1, 1), bool)


def _per_batch(x: Number) -> Number:
    return x if isinstance(x, int) or x.ndim == 0 else x[:, None, None, None]


def _with_rank(x: Anywhere, rank: int) -> Anywhere:
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


def _axis(x: Anywhere, axis: int) -> int | None:
    return axis if x.ndim >= -axis and x.shape[axis] != 1 else None


def _check(name: str, value: Any, kind: type, ranks: tuple[int, ...], wanted: str) -> None:
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, kind) and value.ndim in ranks:
        return
    found = f"{value.dtype} of shape {value.shape}" if hasattr(value, "dtype") else repr(value)
    raise ValueError(f"{name} is {found}; give {wanted}")
