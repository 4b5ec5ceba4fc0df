"""Each mask against its rule evaluated entry by entry in Python, and the errors for wrong parameters."""

import dataclasses
import inspect
import re

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
    PrefixLM,
    Segments,
    SlidingWindow,
    as_mask,
)
from tests.attention.masks.cases import Case, MaskedScores, assert_blocks_are_true, problems


@settings(max_examples=200)
@given(problems(functions=True))
def test_block_is_the_rule(problem):
    visible = problem.case.mask.block(*problem.indices)
    assert visible.ndim == 4
    np.testing.assert_array_equal(np.broadcast_to(visible, problem.sizes), problem.desired)


@settings(max_examples=300)
@given(problems(depth=0), st.integers(1, 8), st.integers(1, 8))
def test_blocks_of_one_mask_are_exact(problem, query_block, key_block):
    b, n, q, k = problem.indices
    blocks = problem.case.mask.blocks(b, n, q.ravel(), k.ravel(), query_block, key_block)
    assert_blocks_are_true(problem, blocks, query_block, key_block)


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
    problem = MaskedScores(FUNCTIONS[name], (2, 2, 7, 10), (3, 0))
    b, n, q, k = problem.indices
    blocks = problem.case.mask.blocks(b, n, q.ravel(), k.ravel(), 3, 4)
    assert all(isinstance(x, jax.Array) for x in blocks)
    assert_blocks_are_true(problem, [np.asarray(x) for x in blocks], 3, 4)


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
    """A mask built without the tests' type checker, as users build it."""
    mask = object.__new__(cls)
    vars(mask).update(zip((field.name for field in dataclasses.fields(cls)), values, strict=True))
    inspect.unwrap(cls.__post_init__)(mask)
    return mask
