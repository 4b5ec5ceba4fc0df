"""The mask algebra against rules evaluated entry by entry in Python, and its summaries of blocks against the masks."""

import dataclasses
import inspect
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
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
    as_mask,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A mask, the same as a rule on Python ints (indices b, n, i, j; positions q, k), and whether `blocks` is exact."""

    make: Callable[
        [], Mask
    ]  # called in the test: beartype draws random numbers, which hypothesis forbids in strategies
    rule: Callable
    exact: bool = True

    @property
    def mask(self):
        return self.make()


@dataclasses.dataclass(frozen=True)
class Problem:
    """A case with its sizes; query and key positions start anywhere."""

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
    return Problem(draw(cases), sizes, (draw(st.integers(-5, 8)), draw(st.integers(-5, 8))))


def assert_blocks_are_true(problem, blocks, query_block, key_block):
    """Safe everywhere, and equal to the truth where the case is exact."""
    desired, (possible, certain) = problem.desired, blocks
    T, S = problem.sizes[2:]
    assert possible.shape == certain.shape == (-(-T // query_block), -(-S // key_block))
    for i, j in np.ndindex(possible.shape):
        part = desired[:, :, i * query_block : (i + 1) * query_block, j * key_block : (j + 1) * key_block]
        assert possible[i, j] >= part.any()
        assert certain[i, j] <= part.all()
        if problem.case.exact:
            assert (possible[i, j], certain[i, j]) == (part.any(), part.all())


@settings(max_examples=200)
@given(problems(functions=True))
def test_block_is_the_rule(problem):
    visible = problem.case.mask.block(*problem.indices)
    assert visible.ndim == 4
    np.testing.assert_array_equal(np.broadcast_to(visible, problem.sizes), problem.desired)


@settings(max_examples=10)
@given(problems(functions=True))
def test_materialize_is_the_rule(problem):
    problem = dataclasses.replace(problem, starts=(0, 0))
    B, N, T, S = problem.sizes
    np.testing.assert_array_equal(problem.case.mask.materialize(T, S, B, N), problem.desired)


@settings(max_examples=300)
@given(problems(), st.integers(1, 8), st.integers(1, 8))
def test_blocks_never_lie_and_are_decided_by_numpy(problem, query_block, key_block):
    b, n, q, k = problem.indices
    blocks = problem.case.mask.blocks(b, n, q.ravel(), k.ravel(), query_block, key_block)
    assert all(type(x) is np.ndarray for x in blocks)
    assert_blocks_are_true(problem, blocks, query_block, key_block)


@settings(max_examples=300)
@given(problems(depth=0), st.integers(1, 8), st.integers(1, 8))
def test_blocks_of_one_mask_are_exact(problem, query_block, key_block):
    b, n, q, k = problem.indices
    blocks = problem.case.mask.blocks(b, n, q.ravel(), k.ravel(), query_block, key_block)
    assert_blocks_are_true(problem, blocks, query_block, key_block)


@pytest.mark.parametrize(
    ("mask", "possible", "certain"),
    [
        (Causal() & SlidingWindow(2, None), [[1, 0, 0], [1, 1, 0], [0, 1, 1]], np.zeros((3, 3))),
        (Causal() | Chunked(4), [[1, 1, 0], [1, 1, 0], [1, 1, 1]], [[1, 1, 0], [1, 1, 0], [1, 1, 1]]),
        (
            Lengths(np.array([2, 6]), None) & Lengths(np.array([6, 2]), None),
            [[1] * 3, [0] * 3, [0] * 3],
            [[1] * 3, [0] * 3, [0] * 3],
        ),
    ],
)
def test_blocks_of_combinations_skip_what_they_can(mask, possible, certain):
    """Each batch is combined for itself: in the last case it is a different one that ends early in either mask."""
    b, n, q, k = indices((2, 1, 6, 6))
    blocks = mask.blocks(b, n, q.ravel(), k.ravel(), 2, 2)
    np.testing.assert_array_equal(blocks, [possible, certain])


TABLE = np.arange(40) % 7 < 4
FUNCTIONS = {
    "plain": Case(
        lambda: FunctionMask(lambda b, n, q, k: (q * k + n) % 3 > b), lambda b, n, i, j, q, k: (q * k + n) % 3 > b
    ),
    "captured": Case(
        lambda: FunctionMask(lambda b, n, q, k: jnp.asarray(TABLE)[q + k]), lambda b, n, i, j, q, k: TABLE[q + k]
    ),
    "only keys": Case(lambda: FunctionMask(lambda b, n, q, k: k < 3), lambda b, n, i, j, q, k: k < 3),
    "combined": Case(
        lambda: FunctionMask(lambda b, n, q, k: q == k + n) & ~Causal(-1),
        lambda b, n, i, j, q, k: q == k + n and not k <= q - 1,
        exact=False,
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_blocks_of_functions_are_decided_at_run_time(name):
    problem = Problem(FUNCTIONS[name], (2, 2, 7, 10), (3, 0))
    b, n, q, k = problem.indices
    blocks = problem.case.mask.blocks(b, n, q.ravel(), k.ravel(), 3, 4)
    assert all(isinstance(x, jax.Array) for x in blocks)
    assert_blocks_are_true(problem, [np.asarray(x) for x in blocks], 3, 4)


@settings(max_examples=60)
@given(problems(functions=True), st.data())
def test_block_of_sliced_leaves_is_the_slice(problem, data):
    b, n, q, k = problem.indices
    i, j = (sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in problem.sizes[2:])
    rows, columns = slice(*i), slice(*j)

    def part(x, axes):
        for axis, chosen in zip(axes, (rows, columns), strict=True):
            x = x if axis is None else x[(..., chosen, *[slice(None)] * (-1 - axis))]
        return x

    leaves, form = jax.tree.flatten(problem.case.mask)
    parts = [part(x, axes) for x, axes in zip(leaves, problem.case.mask.leaf_axes(), strict=True)]
    visible = jax.tree.unflatten(form, parts).block(b, n, q[:, :, rows], k[..., columns])
    desired = problem.desired[:, :, rows, columns]
    np.testing.assert_array_equal(np.broadcast_to(visible, desired.shape), desired)


def test_leaf_axes():
    ids, lengths = np.zeros((2, 5), int), np.array([1, 2])
    assert Segments(ids, ids).leaf_axes() == [(-1, None), (None, -1)]
    assert Segments(ids[0], ids[:, :1]).leaf_axes() == [(-1, None), (None, None)]
    assert ArrayMask(np.ones((2, 1, 4, 5), bool)).leaf_axes() == [(-2, -1)]
    assert ArrayMask(np.ones((2, 1, 1, 5), bool)).leaf_axes() == [(None, -1)]
    assert ArrayMask(np.ones((4, 1), bool)).leaf_axes() == [(-2, None)]
    assert ArrayMask(np.ones((), bool)).leaf_axes() == [(None, None)]
    assert Causal(lengths).leaf_axes() == Lengths(3, lengths).leaf_axes() == [(None, None)]
    assert (Causal(3) | ~SlidingWindow(1, None) & FunctionMask(lambda b, n, q, k: q > k)).leaf_axes() == []
    assert (Causal(lengths) & ~Segments(ids, ids)).leaf_axes() == [(None, None), (-1, None), (None, -1)]


def arrays():
    """A mask with a leaf of every kind, B = 2, T = 5, S = 7."""
    rng = np.random.default_rng(0)
    segments = Segments(np.sort(rng.integers(0, 3, (2, 5))), np.sort(rng.integers(0, 3, 7)))
    lengths, array = Lengths(np.asarray(4), np.array([5, 7])), ArrayMask(rng.random((2, 1, 5, 7)) < 0.7)
    return (
        (Causal(np.array([1, 3])) & segments)
        | (~lengths & Chunked(2))
        | (array & PrefixLM(np.array([2, 0])) & SlidingWindow(2, None))
    )


def test_masks_go_through_jit_with_traced_positions():
    mask, (b, n, q, k) = arrays(), indices((2, 1, 5, 7))

    @jax.jit
    def run(mask, q0):
        positions = q.ravel() + q0
        return mask.block(b, n, q + q0, k), *mask.blocks(b, n, positions, k.ravel(), 2, 3)

    for q0 in (0, 4):
        desired = mask.block(b, n, q + q0, k), *mask.blocks(b, n, q.ravel() + q0, k.ravel(), 2, 3)
        jax.tree.map(np.testing.assert_array_equal, run(mask, np.int32(q0)), desired)
    assert run._cache_size() == 1


def test_python_ints_stay_static_under_jit():
    b, n, q, k = indices((1, 1, 6, 6))

    @jax.jit
    def run(mask):
        blocks = mask.blocks(b, n, q.ravel(), k.ravel(), 2, 2)
        assert all(type(x) is np.ndarray for x in blocks)
        return blocks

    mask = (Causal(1) & SlidingWindow(3, 0)) | PrefixLM(2) | Chunked(2) & Lengths(5, None)
    assert not jax.tree.leaves(mask)
    run(mask)
    assert run._cache_size() == 1
    run((Causal(2) & SlidingWindow(3, 0)) | PrefixLM(2) | Chunked(2) & Lengths(5, None))
    assert run._cache_size() == 2


def test_vmap_over_leaves():
    mask = arrays()
    other = jax.tree.map(lambda x: np.flip(x, -1) if x.ndim else x + 1, mask)
    stacked = jax.tree.map(lambda *x: np.stack(x), mask, other)
    desired = np.stack([x.block(*indices((2, 1, 5, 7))) for x in (mask, other)])
    run = lambda mask: mask.block(*indices((2, 1, 5, 7)))  # noqa: E731
    np.testing.assert_array_equal(jax.vmap(run)(stacked), desired)
    axes = jax.tree.map(lambda _: 0, stacked)
    np.testing.assert_array_equal(jax.vmap(run, in_axes=(axes,))(stacked), desired)


@settings(max_examples=30)
@given(problems(functions=True))
def test_tree_map_keeps_masks(problem):
    mask = problem.case.mask
    leaves, form = jax.tree.flatten(mask)
    assert all(isinstance(x, np.ndarray) for x in leaves)
    same = jax.tree.map(lambda x: x, mask)
    assert repr(same) == repr(mask)
    for placeholder in (object(), 0, "name"):
        other = jax.tree.map(lambda _, placeholder=placeholder: placeholder, mask)
        assert jax.tree.structure(other) == form
        assert jax.tree.leaves(other) == [placeholder] * len(leaves)


def test_static_masks_are_equal_and_hash_by_value():
    assert Causal(1) & ~Chunked(2) == Causal(1) & ~Chunked(2)
    assert len({Causal(1), Causal(1), Causal(2), SlidingWindow(1, None)}) == 3


@pytest.mark.parametrize("namespace", [np, jnp])
def test_arrays_on_either_side(namespace):
    array = namespace.asarray([True, False, True])
    for mask in (array & Causal(), Causal() & array):
        assert isinstance(mask, Mask)
        np.testing.assert_array_equal(mask.materialize(2, 3)[0, 0], [[1, 0, 0], [1, 0, 0]])
    for mask in (array | Causal(), Causal() | array):
        assert isinstance(mask, Mask)
        np.testing.assert_array_equal(mask.materialize(2, 3)[0, 0], [[1, 0, 1], [1, 1, 1]])


def test_as_mask():
    mask = Causal()
    assert as_mask(mask) is mask
    assert isinstance(as_mask(jnp.ones(3, bool)), ArrayMask)


def test_an_empty_axis_has_no_blocks():
    b, n, q, k = indices((1, 1, 3, 0))
    for mask in (Causal(), Lengths(1, 1) & np.ones((3, 1), bool)):
        assert [x.shape for x in mask.blocks(b, n, q.ravel(), k.ravel(), 2, 2)] == [(2, 0)] * 2
        assert [x.shape for x in mask.blocks(b, n, k.ravel(), q.ravel(), 2, 2)] == [(0, 2)] * 2


IDS, ONES = np.zeros((2, 3), int), np.ones(3, np.float32)
SCALARS = "an int or an integer array, scalar or [B]"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plain(Causal, 1.5), f"offset is 1.5; give {SCALARS}"),
        (lambda: plain(Causal, ONES), f"offset is float32 of shape (3,); give {SCALARS}"),
        (lambda: plain(PrefixLM, IDS), f"n is int64 of shape (2, 3); give {SCALARS}"),
        (lambda: plain(PrefixLM, None), f"n is None; give {SCALARS}"),
        (lambda: plain(SlidingWindow, -1, 0), "left=-1 is no window size; give an int >= 0, or None for no bound"),
        (lambda: plain(SlidingWindow, 0, 0.5), "right=0.5 is no window size; give an int >= 0, or None for no bound"),
        (lambda: plain(Chunked, 0), "n=0 is no chunk size; give an int >= 1"),
        (lambda: plain(Chunked, ONES[0]), "is no chunk size; give an int >= 1"),
        (lambda: plain(Segments, ONES, IDS), "q_ids is float32 of shape (3,); give an integer array [B, T] or [T]"),
        (lambda: plain(Segments, IDS, IDS[0, 0]), "kv_ids is int64 of shape (); give an integer array [B, S] or [S]"),
        (lambda: plain(Segments, IDS, 3), "kv_ids is 3; give an integer array [B, S] or [S]"),
        (lambda: plain(Lengths, ONES, None), "query is float32 of shape (3,); give an int, an integer array"),
        (lambda: plain(Lengths, None, IDS), "key is int64 of shape (2, 3); give an int, an integer array"),
        (lambda: plain(ArrayMask, IDS), "array is int64 of shape (2, 3); give a bool array that broadcasts to"),
        (
            lambda: plain(ArrayMask, np.ones((1,) * 5, bool)),
            "array is bool of shape (1, 1, 1, 1, 1); give a bool array",
        ),
        (lambda: plain(ArrayMask, True), "array is True; give a bool array that broadcasts to [B, N, T, S]"),
        (lambda: inspect.unwrap(as_mask)([True]), "x=[True] is no mask; give a Mask or a bool array"),
        (lambda: FunctionMask(lambda b, n, q, k: q - k).materialize(2, 2), "the result of f is int32 of shape"),
        (
            lambda: FunctionMask(lambda b, n, q, k: True).materialize(2, 2),
            "the result of f is True; give bools of rank 4",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make()
    assert "\n" not in str(error.value)


def plain(cls, *values):
    """A mask made without the tests' own type checker, as users make it."""
    mask = object.__new__(cls)
    vars(mask).update(zip((field.name for field in dataclasses.fields(cls)), values, strict=True))
    inspect.unwrap(cls.__post_init__)(mask)
    return mask
