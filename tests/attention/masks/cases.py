"""Masks drawn by hypothesis, each with the same rule on Python ints."""

import dataclasses
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from jaxai.attention.masks import (
    ArrayMask,
    Causal,
    Chunked,
    FunctionMask,
    Lengths,
    Mask,
    PrefixLM,
    Segments,
    SlidingWindow,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A mask, its rule on Python ints (indices b, n, i, j; positions q, k), and whether its `blocks` are exact."""

    make: Callable[
        [], Mask
    ]  # called in the test: beartype draws random numbers, which hypothesis forbids in strategies
    rule: Callable
    exact: bool = True

    @property
    def mask(self):
        return self.make()


@dataclasses.dataclass(frozen=True)
class MaskedScores:
    """A case with sizes [B, N, T, S] and first positions of queries and keys."""

    case: Case
    sizes: tuple[int, int, int, int]
    starts: tuple[int, int]

    @property
    def indices(self):
        return indices(self.sizes, *self.starts)

    @property
    def desired(self):
        q0, k0 = self.starts
        entries = [self.case.rule(b, n, i, j, i + q0, j + k0) for b, n, i, j in np.ndindex(self.sizes)]
        return np.array(entries, bool).reshape(self.sizes)


def indices(sizes, q0=0, k0=0):
    """b, n, q, k as `block` takes them."""
    B, N, T, S = sizes
    return [x.astype(np.int32) for x in np.ogrid[:B, :N, q0 : q0 + T, k0 : k0 + S]]


def value(x, b):
    """Entry b of an int or an array, scalar or [B]."""
    return int(x if np.ndim(x) == 0 else x[b])


def limits(draw, B):
    """An int, a scalar array or [B]."""
    numbers = st.integers(-3, 20)
    array = st.one_of(numbers.map(np.int32).map(np.asarray), st.lists(numbers, min_size=B, max_size=B).map(np.array))
    return draw(st.one_of(numbers, array))


def segment_ids(draw, B, size, ordered):
    shape = draw(st.sampled_from([(size,), (B, size)]))
    steps = np.array(draw(st.lists(st.integers(0, 1 if ordered else 5), min_size=B * size, max_size=B * size)))
    steps = steps[: np.prod(shape)].reshape(shape)
    return np.cumsum(steps, -1) if ordered else steps % 3


def at(ids, b, i):
    return ids[i] if ids.ndim == 1 else ids[b, i]


@st.composite
def primitives(draw, sizes, functions):
    B, _, T, S = sizes
    kinds = ["causal", "window", "prefix", "chunked", "segments", "lengths", "array"] + ["function"] * functions
    kind = draw(st.sampled_from(kinds))
    if kind == "causal":
        offset = limits(draw, B)
        return Case(lambda: Causal(offset), lambda b, n, i, j, q, k: k <= q + value(offset, b))
    if kind == "window":
        left, right = (draw(st.one_of(st.none(), st.integers(0, 9))) for _ in range(2))
        low, high = 999 if left is None else left, 999 if right is None else right
        return Case(lambda: SlidingWindow(left, right), lambda b, n, i, j, q, k: q - low <= k <= q + high)
    if kind == "prefix":
        prefix = limits(draw, B)
        return Case(lambda: PrefixLM(prefix), lambda b, n, i, j, q, k: k < value(prefix, b) or k <= q)
    if kind == "chunked":
        size = draw(st.integers(1, 9))
        return Case(lambda: Chunked(size), lambda b, n, i, j, q, k: q // size == k // size)
    if kind == "segments":
        ordered = draw(st.booleans())
        q_ids, kv_ids = segment_ids(draw, B, T, ordered), segment_ids(draw, B, S, ordered)
        return Case(
            lambda: Segments(q_ids, kv_ids), lambda b, n, i, j, q, k: at(q_ids, b, i) == at(kv_ids, b, j), ordered
        )
    if kind == "lengths":
        query, key = (limits(draw, B) if draw(st.booleans()) else None for _ in range(2))
        ends = [999 if x is None else x for x in (query, key)]
        return Case(
            lambda: Lengths(query, key), lambda b, n, i, j, q, k: q < value(ends[0], b) and k < value(ends[1], b)
        )
    if kind == "array":
        shape = [draw(st.sampled_from([1, size])) for size in sizes][draw(st.integers(0, 4)) :]
        bits = draw(st.lists(st.booleans(), min_size=(entries := int(np.prod(shape))), max_size=entries))
        array = np.array(bits, bool).reshape(shape)
        return Case(lambda: ArrayMask(array), lambda b, n, i, j, q, k: np.broadcast_to(array, sizes)[b, n, i, j])
    modulus = draw(st.integers(2, 5))
    f = lambda b, n, q, k: (3 * q + k + b * n) % modulus > 1  # noqa: E731
    return Case(lambda: FunctionMask(f), lambda b, n, i, j, q, k: f(b, n, q, k))


def combined(cases):
    def both(pair):
        x, y = pair
        return Case(lambda: x.mask & y.mask, lambda *at: x.rule(*at) and y.rule(*at), False)

    def either(pair):
        x, y = pair
        return Case(lambda: x.mask | y.mask, lambda *at: x.rule(*at) or y.rule(*at), False)

    negated = cases.map(lambda x: Case(lambda: ~x.mask, lambda *at: not x.rule(*at), x.exact))
    return st.one_of(st.tuples(cases, cases).map(both), st.tuples(cases, cases).map(either), negated)


@st.composite
def problems(draw, functions=False, depth=3):
    sizes = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 17)), draw(st.integers(1, 17)))
    cases = primitives(sizes, functions)
    for _ in range(draw(st.integers(0, depth))):
        cases = combined(cases) | cases
    return MaskedScores(draw(cases), sizes, (draw(st.integers(-5, 8)), draw(st.integers(-5, 8))))


def assert_blocks_are_true(problem, blocks, query_block, key_block):
    """Assert that no block is misjudged, and that the tables are exact if the case's are."""
    desired, (nonempty, full) = problem.desired, blocks
    T, S = problem.sizes[2:]
    assert nonempty.shape == full.shape == (-(-T // query_block), -(-S // key_block))
    for i, j in np.ndindex(nonempty.shape):
        part = desired[:, :, i * query_block : (i + 1) * query_block, j * key_block : (j + 1) * key_block]
        assert nonempty[i, j] >= part.any()
        assert full[i, j] <= part.all()
        if problem.case.exact:
            assert (nonempty[i, j], full[i, j]) == (part.any(), part.all())
