"""Masks and how they combine: which keys each query sees, entry by entry and block by block.

A mask is a frozen dataclass and a pytree. Python ints in it are static, so a schedule of blocks is decided with NumPy
at trace time; arrays in it are leaves. `&`, `|` and `~` combine masks, and masks with bool arrays on either side.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import tree_util
from jaxtyping import Bool

from jaxai.typing import Array, Int

Anywhere = Array | np.ndarray
"""A NumPy array, known while tracing, or a JAX array, which may be traced."""

Number = int | np.integer | Anywhere
"""A Python int, which is static, or an integer array, scalar or [B], which is a leaf."""

Batches = Int[Anywhere, "#B 1 1 1"]
Heads = Int[Anywhere, "1 #N 1 1"]
type Pair = tuple[Anywhere, Anywhere]


class Mask(ABC):
    """Which keys query q of head n in batch b sees; the base of all masks. Scores are [B, N, T, S].

    `array & mask` and `array | mask`, with a bool array of NumPy or JAX, are masks too.
    """

    __array_ufunc__ = None  # NumPy's operators then leave `array & mask` to `__rand__`; JAX's do so by themselves

    def __init_subclass__(cls) -> None:
        tree_util.register_pytree_with_keys(cls, cls._flatten, cls._unflatten)

    def _flatten(self) -> tuple[list, tuple]:
        """Arrays and masks are children; ints, None and functions are static."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        found = tuple(x for x, v in values.items() if not (isinstance(v, int | None) or callable(v)))
        # A mask rebuilt by JAX keeps its structure whatever its leaves: `tree.map(lambda _: 0, mask)` can be `in_axes`.
        children = vars(self).get("_children", found)
        static = tuple((x, v) for x, v in values.items() if x not in children)
        return [(tree_util.GetAttrKey(x), values[x]) for x in children], (children, static)

    @classmethod
    def _unflatten(cls, aux: tuple, values: Iterable) -> Any:
        """Build a mask without `__init__`, which would reject the placeholders that JAX uses as leaves."""
        children, static = aux
        mask = object.__new__(cls)
        vars(mask).update(zip(children, values, strict=True), _children=children, **dict(static))
        return mask

    @abstractmethod
    def _block(self, b: Anywhere, n: Anywhere, q: Anywhere, k: Anywhere) -> Anywhere:
        """The result of `block`."""

    @abstractmethod
    def _blocks(self, b: Anywhere, n: Anywhere, q: Anywhere, k: Anywhere) -> Pair:
        """`blocks` for each batch and head, two [B|1, N|1, nq|1, nk|1], from the positions q [nq, t] and k [nk, s]."""

    def block(
        self, b: Batches, n: Heads, q: Int[Anywhere, "1 1 #t 1"], k: Int[Anywhere, "1 1 1 #s"]
    ) -> Bool[Anywhere, "#B #N #t #s"]:
        """The visible entries of one block: bool, of rank 4, with axes of size 1 where nothing varies.

        b, n, q, k (int32) are the block's batches, heads and positions, which may start anywhere. Array leaves hold the
        block's part alone, cut along `leaf_axes`, so nothing is gathered here.
        """
        return self._block(b, n, q, k)

    def leaf_axes(self) -> list[tuple[int | None, int | None]]:
        """The query axis and key axis of each array leaf, counted from the end; None for an axis that is absent or 1.

        >>> from jaxai.attention.masks import Segments
        >>> Segments(np.array([[0, 0, 1]]), np.array([[0, 1, 1, 1]])).leaf_axes()
        [(-1, None), (None, -1)]
        """
        children = [value for _, value in self._flatten()[0]]
        axes = [child.leaf_axes() if isinstance(child, Mask) else [(None, None)] for child in children]
        return [pair for pairs in axes for pair in pairs]

    def blocks(
        self, b: Batches, n: Heads, q: Int[Anywhere, " T"], k: Int[Anywhere, " S"], query_block: int, key_block: int
    ) -> tuple[Bool[Anywhere, "nq nk"], Bool[Anywhere, "nq nk"]]:
        """Which blocks are nonempty in some batch and head, and which are full in all.

        q and k are all positions, contiguous and increasing; nq = ceil(T / query_block), and the last block may be
        ragged. A block that is not nonempty has no visible entry, a full one no masked entry. Both tables are exact
        except for combinations of masks, and for `Segments` whose ids decrease or skip: these may call an empty block
        nonempty or a full one partial. They are NumPy arrays if positions and mask are known while tracing;
        `FunctionMask` is always evaluated at run time.

        >>> from jaxai.attention.masks import Causal
        >>> index, one = np.arange(4), np.zeros((1, 1, 1, 1), int)
        >>> nonempty, full = Causal().blocks(one, one, index, index, 2, 2)
        >>> nonempty.tolist(), full.tolist()
        ([[True, False], [True, True]], [[False, False], [True, False]])
        """
        nq, nk = -(-q.shape[0] // query_block), -(-k.shape[0] // key_block)
        nonempty, full = self._blocks(b, n, tiles(q, 0, nq, query_block), tiles(k, 0, nk, key_block))
        ones = np.ones((nq, nk), bool)
        return nonempty.any((0, 1)) & ones, full.all((0, 1)) & ones

    def materialize(self, T: int, S: int, B: int = 1, N: int = 1) -> Bool[Array, "{B} {N} {T} {S}"]:
        """The whole mask as a bool array [B, N, T, S], for tests and small uses.

        >>> from jaxai.attention.masks import Causal
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


@dataclass(frozen=True)
class ArrayMask(Mask):
    """A mask written out: bools that broadcast to [B, N, T, S], missing leading axes added; ValueError for others.

    >>> ArrayMask(np.array([[True], [False]])).materialize(2, 2)[0, 0].tolist()
    [[True, True], [False, False]]
    """

    array: Anywhere

    def __post_init__(self) -> None:
        wanted = "a bool array that broadcasts to [B, N, T, S], by a comparison or .astype(bool)"
        check("array", self.array, np.bool_, (0, 1, 2, 3, 4), wanted)

    def leaf_axes(self):
        return [(varying_axis(self.array, -2), varying_axis(self.array, -1))]

    def _block(self, b, n, q, k):
        return with_rank(self.array, 4)

    def _blocks(self, b, n, q, k):
        rows = tiles(with_rank(self.array, 4), 2, *q.shape)
        return tiles(rows.any(3), 3, *k.shape).any(4), tiles(rows.all(3), 3, *k.shape).all(4)


@dataclass(frozen=True)
class And(Mask):
    """The entries that both masks show: `left & right`."""

    left: Mask
    right: Mask

    def _block(self, b, n, q, k):
        return self.left.block(b, n, q, k) & self.right.block(b, n, q, k)

    def _blocks(self, b, n, q, k):
        left, right = self.left._blocks(b, n, q, k), self.right._blocks(b, n, q, k)
        return left[0] & right[0], left[1] & right[1]


@dataclass(frozen=True)
class Or(Mask):
    """The entries that either mask shows: `left | right`."""

    left: Mask
    right: Mask

    def _block(self, b, n, q, k):
        return self.left.block(b, n, q, k) | self.right.block(b, n, q, k)

    def _blocks(self, b, n, q, k):
        left, right = self.left._blocks(b, n, q, k), self.right._blocks(b, n, q, k)
        return left[0] | right[0], left[1] | right[1]


@dataclass(frozen=True)
class Not(Mask):
    """The entries that the mask hides: `~mask`."""

    mask: Mask

    def _block(self, b, n, q, k):
        return ~self.mask.block(b, n, q, k)

    def _blocks(self, b, n, q, k):
        nonempty, full = self.mask._blocks(b, n, q, k)
        return ~full, ~nonempty


def as_mask(x: Mask | Anywhere) -> Mask:
    """A bool array as an `ArrayMask`, a mask unchanged. Raises ValueError for anything else."""
    if isinstance(x, Mask):
        return x
    if isinstance(x, Anywhere):
        return ArrayMask(x)
    raise ValueError(f"x={x!r} is no mask; give a Mask or a bool array that broadcasts to [B, N, T, S]")


def conjuncts(mask: Mask | None) -> list[Mask]:
    """The masks whose conjunction is ``mask``; none for None."""
    if isinstance(mask, And):
        return [*conjuncts(mask.left), *conjuncts(mask.right)]
    return [] if mask is None else [mask]


# Helpers of masks


def tiles(x: Anywhere, axis: int, count: int, size: int) -> Anywhere:
    """`axis` as [count, size], padded with its last entry; [count, 1] for an axis of size 1."""
    size = max(1, min(size, x.shape[axis]))
    return x.take(np.arange(count * size).reshape(count, size), axis, mode="clip")


def with_rank(x: Anywhere, rank: int) -> Anywhere:
    """x with leading axes of size 1 up to a rank."""
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


def varying_axis(x: Anywhere, axis: int) -> int | None:
    """A negative axis of x, or None where x has no such axis or one of size 1."""
    return axis if x.ndim >= -axis and x.shape[axis] != 1 else None


def check(name: str, value: Any, kind: type, ranks: tuple[int, ...], wanted: str) -> None:
    """Raise ValueError unless value is an array of this kind of dtype and of one of these ranks."""
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, kind) and value.ndim in ranks:
        return
    found = f"{value.dtype} of shape {value.shape}" if hasattr(value, "dtype") else repr(value)
    raise ValueError(f"{name} is {found}; give {wanted}")
