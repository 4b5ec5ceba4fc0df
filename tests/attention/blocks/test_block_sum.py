"""Sums over blocks against the same sums over whole arrays, with their derivatives, transposes and vmaps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.attention.blocks.block_sum import block_sum
from jaxai.attention.blocks.grid import Grid, Part, uncut
from tests.attention.oracle import assert_close, compiled

GRID = Grid(6, 8, 2, 4)
pytestmark = pytest.mark.usefixtures("x64")

ROW, COL, BOTH, NEITHER = Part(0, None, (0,)), Part(None, 0, (0,)), Part(0, 1, (0, 1)), uncut(jnp.zeros(()))
TABLES = (
    np.array([[True, False], [True, True], [False, True]]),
    np.array([[True, False], [False, True], [False, False]]),
)
VISIBLE = np.repeat(np.repeat(TABLES[0], 2, 0), 4, 1)


def terms(x, y, z, w):
    return jnp.sin(x[:, None] * y[None]) * z + w


def blocks(tables, outs, x, y, z, w):
    def f(masked, q0, k0, x, y, z, w):
        t = terms(x, y, z, w)
        return [results[out](t) for out in outs]

    results = {ROW: lambda t: t.sum(1), COL: lambda t: t.sum(0), BOTH: lambda t: t, NEITHER: lambda t: t.sum()}
    return block_sum(f, [x, y, z, w], [ROW, COL, BOTH, NEITHER], outs, GRID, *tables)


def whole(outs, x, y, z, w):
    t = terms(x, y, z, w) * VISIBLE
    results = {ROW: t.sum(1), COL: t.sum(0), BOTH: t, NEITHER: t.sum()}
    return [results[out] for out in outs]


def arrays(*lead):
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.standard_normal((*lead, *shape)), "float64") for shape in ((6,), (8,), (6, 8), ())]


@pytest.mark.parametrize("traced", [False, True], ids=["known", "traced"])
@pytest.mark.parametrize(
    "outs", [(ROW, BOTH), (COL, NEITHER), (ROW, COL, BOTH, NEITHER)], ids=["rows", "columns", "all"]
)
@pytest.mark.grid(fast=2)
def test_sums_and_derivatives_of_all_parts(outs, traced):
    def everything(f, *arrays):
        def value(*arrays):
            return sum(jnp.cos(x).sum() for x in f(*arrays))

        gradient = jax.grad(value, (0, 1, 2, 3))
        return f(*arrays), jax.jvp(gradient, arrays, arrays)

    def by_blocks(tables, *arrays):
        return everything(functools.partial(blocks, tables, outs), *arrays)

    if traced:
        actual = compiled(by_blocks)(TABLES, *arrays())
    else:
        actual = compiled(functools.partial(by_blocks, TABLES))(*arrays())
    desired = compiled(functools.partial(everything, functools.partial(whole, outs)))(*arrays())
    assert_close(actual, desired)


@pytest.mark.parametrize("axes", [(0, 0, 0, 0), (0, None, None, None), (None, None, None, 0)])
def test_vmap(axes):
    outs = ROW, COL, BOTH, NEITHER
    stacks = [x if axis == 0 else np.asarray(x)[0] for x, axis in zip(arrays(3), axes, strict=True)]
    functions = functools.partial(blocks, TABLES, outs), functools.partial(whole, outs)
    actual, desired = (compiled(jax.vmap(f, in_axes=axes))(*stacks) for f in functions)
    assert_close(actual, desired)


def test_vmap_over_tables_computes_what_any_row_needs():
    tables = np.stack([TABLES[0], TABLES[0] & False]), np.stack([TABLES[1]] * 2)
    (actual,) = compiled(jax.vmap(lambda *tables: blocks(tables, (ROW,), *arrays())))(*tables)
    (desired,) = compiled(functools.partial(whole, (ROW,)))(*arrays())
    assert_close(actual, np.stack([desired] * 2))
