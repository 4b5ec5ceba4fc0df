"""Blocks of arrays, and the order in which they are visited."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.attention.blocks.grid import (
    Grid,
    Part,
    Schedule,
    block_avals,
    cut,
    flat_visits,
    padded,
    put,
    split_schedule,
    uncut,
    visits,
    whole_shape,
)

GRID = Grid(6, 8, 2, 4)
PARTS = {  # name: (part, shape of the array)
    "rows": (Part(1, None, (0, 2, 1)), (2, 6, 3)),
    "columns": (Part(None, 0, (1, 0)), (8, 3)),
    "both": (Part(2, 1, (0, 2, 1)), (2, 8, 6)),
    "neither": (uncut(jnp.zeros((2, 3))), (2, 3)),
}


@pytest.mark.parametrize("name", PARTS)
def test_blocks_that_are_cut_and_put_back_give_the_array(name):
    part, shape = PARTS[name]
    x = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    (aval,) = block_avals([jnp.asarray(x)], [part], GRID)
    assert whole_shape(aval.shape, part, GRID) == shape

    @jax.jit
    def cut_and_put(x):
        result = jnp.zeros_like(x)
        for i, j in np.ndindex(GRID.shape):
            block = cut(x, part, GRID, i, j)
            assert block.shape == aval.shape
            result = put(result, block, part, GRID, i, j)
        return result

    np.testing.assert_array_equal(cut_and_put(x), x)


def test_blocks_of_floats_are_wide_and_others_keep_their_dtype():
    x = jnp.zeros((8, 3), "bfloat16")
    assert cut(x, PARTS["columns"][0], GRID, 0, 1).dtype == "float32"
    assert cut(x, uncut(x), GRID, 0, 1).dtype == "bfloat16"
    assert cut(x.astype(int), PARTS["columns"][0], GRID, 0, 1).dtype == x.astype(int).dtype


def test_padding_is_zero():
    x = padded(jnp.ones((2, 5, 3)), PARTS["rows"][0], GRID)
    np.testing.assert_array_equal(x[:, :, 0], [[1, 1, 1, 1, 1, 0]] * 2)


@pytest.mark.parametrize("namespace", [np, jnp])
def test_every_nonempty_block_is_visited_once(namespace):
    rng = np.random.default_rng(0)
    nonempty = rng.random((3, 4)) < 0.7
    full = nonempty & (rng.random((3, 4)) < 0.5)
    visited = np.zeros((3, 4), int)
    for masked, count, columns in visits(namespace.asarray(nonempty), namespace.asarray(full)):
        for row in range(3):
            chosen = np.asarray(columns[row, : count[row]])
            assert (full[row, chosen] != masked).all()
            visited[row, chosen] += 1
    np.testing.assert_array_equal(visited, nonempty)


def test_flat_visits_list_known_blocks_and_all_others():
    nonempty, full = np.array([[True, False], [True, True]]), np.array([[False, False], [True, False]])
    tables, schedule = split_schedule(nonempty, full)
    assert tables == []
    assert repr(schedule) == "Schedule(3 of 4 blocks)"
    found = [(masked, rows.tolist(), cols.tolist()) for masked, rows, cols in flat_visits(schedule, Grid(4, 4, 2, 2))]
    assert found == [(False, [1], [0]), (True, [0, 1], [0, 1])]
    tables, schedule = split_schedule(jnp.asarray(nonempty), jnp.asarray(full))
    assert len(tables) == 2
    ((masked, rows, _),) = flat_visits(schedule, Grid(4, 4, 2, 2))
    assert masked
    assert len(rows) == 4
    assert flat_visits(Schedule(~nonempty & nonempty, full), Grid(4, 4, 2, 2)) == []
