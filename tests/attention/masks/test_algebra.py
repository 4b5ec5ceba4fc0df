"""The mask algebra against rules evaluated entry by entry in Python: blocks, combinations, and masks as pytrees."""

import dataclasses

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
from tests.attention.masks.cases import assert_blocks_are_true, indices, problems


@settings(max_examples=10)
@given(problems(functions=True))
def test_materialize_is_the_rule(problem):
    problem = dataclasses.replace(problem, starts=(0, 0))
    B, N, T, S = problem.sizes
    np.testing.assert_array_equal(problem.case.mask.materialize(T, S, B, N), problem.desired)


@settings(max_examples=300)
@given(problems(), st.integers(1, 8), st.integers(1, 8))
def test_blocks_are_never_misjudged_and_are_decided_by_numpy(problem, query_block, key_block):
    b, n, q, k = problem.indices
    blocks = problem.case.mask.blocks(b, n, q.ravel(), k.ravel(), query_block, key_block)
    assert all(type(x) is np.ndarray for x in blocks)
    assert_blocks_are_true(problem, blocks, query_block, key_block)


@pytest.mark.parametrize(
    ("mask", "nonempty", "full"),
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
def test_blocks_of_combinations_skip_what_they_can(mask, nonempty, full):
    """Batches are combined separately: in the last case a different batch ends early in each mask."""
    b, n, q, k = indices((2, 1, 6, 6))
    blocks = mask.blocks(b, n, q.ravel(), k.ravel(), 2, 2)
    np.testing.assert_array_equal(blocks, [nonempty, full])


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
