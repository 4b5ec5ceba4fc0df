"""Attention by blocks: which blocks are computed, their sizes, and their schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.attention import Causal, FunctionMask, Lengths, Segments, SlidingWindow, dot_product_attention
from jaxai.attention.blocks import blockwise
from jaxai.attention.blocks.blockwise import BlockedCall
from jaxai.attention.reference import Call, reference
from tests.attention.oracle import TOLERANCE, assert_close, compiled, draw, energy

MASKS = {
    "causal": Causal(),
    "window": SlidingWindow(5, 3),
    "segments": Segments(np.repeat([0, 1, 2], [9, 8, 13])[None], np.repeat([0, 1, 2], [16, 2, 20])[None]),
    "lengths": Lengths(None, 17),
    "none": None,
}


@pytest.mark.parametrize("name", MASKS)
def test_only_blocks_with_something_to_see_are_computed(name):
    """Counted at run time, which includes segments, whose schedule is known only then."""
    mask = MASKS[name]
    query, key, value = draw(1, 30, 38, 1, 1, 4, 4)
    blocked = BlockedCall(Call(query, key, value, mask=mask), 8, 8)
    rows, cols = blocked.grid.block_rows, blocked.grid.block_cols
    visible = np.ones((30, 38), bool) if mask is None else np.asarray(mask.materialize(30, 38))[0, 0]
    blocks = [
        [visible[i : i + rows, j : j + cols] for j in range(0, blocked.grid.cols, cols)]
        for i in range(0, blocked.grid.rows, rows)
    ]
    nonempty = np.array([[block.any() for block in row] for row in blocks])
    # a block that is filled up, along the queries or along the keys, is masked, so it isn't full
    full = np.array([[block.all() and block.shape == (rows, cols) for block in row] for row in blocks])
    np.testing.assert_array_equal(blocked.nonempty, nonempty)
    np.testing.assert_array_equal(blocked.full, full)

    starts = []

    def score_mod(score, b, n, q, k):
        def visit(q0, k0):  # several blocks of queries may be visited at once
            starts.extend((int(q0) + row, int(k0)) for row in range(0, q.shape[2], rows))

        jax.debug.callback(visit, q[0, 0, 0, 0], k[0, 0, 0, 0])
        return score

    run = functools.partial(dot_product_attention, query, key, value, implementation="blockwise", block_size=8)
    jax.block_until_ready(run(mask=mask, score_mod=score_mod))
    jax.effects_barrier()
    assert sorted(starts) == [(i * rows, j * cols) for i, j in np.argwhere(nonempty)]


def loss_and_gradient(run, **options):
    """A loss of three arrays and its gradient; ``options`` are fields of a Call."""
    value = energy(lambda *arrays: run(Call(*arrays, **options)))
    return compiled(jax.value_and_grad(value, (0, 1, 2)))


@pytest.fixture
def blocks_of_16(monkeypatch):
    """Blocks of 16 by default, of 8 in the forward pass, so that T = 50 behaves like T = 1,600."""
    monkeypatch.setattr(blockwise, "SIZES", {16: 1.0})
    monkeypatch.setattr(blockwise, "MIN_KEYS", 8)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("T", [1, 7, 17, 24, 33, 50, 100])
@pytest.mark.grid(fast=2)
def test_the_forward_pass_takes_smaller_blocks_than_the_derivatives(mask, T, blocks_of_16):
    """Some blocks are all padding; a single block may have an odd number of queries."""
    arrays = draw(1, T, 38, 1, 2, 4, 4)
    if isinstance(mask, Segments):
        mask = Segments(np.arange(T)[None] // 9, np.arange(38)[None] // 9)
    blocked = BlockedCall(Call(*arrays, mask=mask), 16, 16)
    grid, forward = blocked.quarters()
    assert (grid.rows, grid.cols, grid.block_cols) == (blocked.grid.rows, blocked.grid.cols, 8)
    assert grid.rows % grid.block_rows == 0
    assert forward.tables[0].shape == grid.shape
    results = [loss_and_gradient(run, mask=mask)(*arrays) for run in (blockwise.blockwise, reference)]
    assert_close(*results, 1e-5)


@pytest.mark.slow
def test_smaller_blocks_with_everything_else(blocks_of_16):
    """Sinks, masked rows, dropout, bias, 16-bit floats, a batch by vmap, devices by shard_map."""
    arrays = draw(3, 50, 38, 1, 2, 4, 4)
    options = {"sinks": jnp.array([0.3, -1]), "mask": Lengths(40, 30), "dropout_rate": 0.3}
    options |= {"dropout_key": jnp.array([1, 2], np.uint32), "bias": jnp.linspace(-1, 1, 38).reshape(1, 1, 1, 38)}
    run = {
        name: loss_and_gradient(f, **options) for name, f in {"ours": blockwise.blockwise, "dense": reference}.items()
    }
    assert_close(run["ours"](*arrays), run["dense"](*arrays), 1e-5)
    rows = [x[:, None] for x in arrays]
    assert_close(jax.vmap(run["ours"])(*rows), jax.vmap(run["dense"])(*rows), 1e-5)
    halves = [x[:2] for x in arrays]
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec("x")
    forward = {
        name: lambda *x, f=f: f(Call(*x, mask=Causal(3)))
        for name, f in zip(run, (blockwise.blockwise, reference), strict=True)
    }
    split = jax.shard_map(forward["ours"], mesh=mesh, in_specs=spec, out_specs=spec)
    assert_close(jax.jit(split)(*halves), forward["dense"](*halves), TOLERANCE)
    small = [x.astype("bfloat16") for x in arrays]
    wide = forward["dense"](*(x.astype("float32") for x in small))[0]
    errors = {name: np.linalg.norm(np.asarray(f(*small)[0], "float32") - wide) for name, f in forward.items()}
    assert errors["ours"] <= 2 * errors["dense"]


def test_a_ready_score_function_leaves_the_forward_pass_its_blocks():
    """Captured arrays that are known while tracing allow smaller blocks in the forward pass; tracers don't."""
    table = np.linspace(0, 1, 64, dtype=np.float32)
    arrays = draw(1, 64, 64, 1, 1, 4, 4)
    known = Call(*arrays, score_mod=jax.tree_util.Partial(lambda score, b, n, q, k: score + jnp.asarray(table)[k]))
    assert BlockedCall(known, 16, 16).f.any_size

    def traced(table):
        call = Call(*arrays, score_mod=jax.tree_util.Partial(lambda score, b, n, q, k: score + table[k]))
        assert not BlockedCall(call, 16, 16).f.any_size
        return blockwise.blockwise(call, (16, 16))[0]

    assert_close(jax.jit(traced)(jnp.asarray(table)), blockwise.blockwise(known, (16, 16))[0], TOLERANCE)


def test_block_size_by_the_size_that_blocks_really_have():
    """T = 640 can have blocks of 320 or, at a higher cost, of 216."""
    arrays = draw(1, 640, 640, 1, 1, 4, 4)
    assert blockwise.block_sizes(Call(*arrays)) == (512, 512)


def test_a_mask_is_evaluated_only_in_blocks_with_something_to_hide():
    """A causal mask hides parts of 3 of 3 x 3 blocks; its function runs there, and once per block for the schedule."""
    query, key, value = draw(1, 24, 24, 1, 1, 4, 4)
    calls = []

    def counted(visible):
        calls.append(visible.shape)
        return np.asarray(visible)

    def causal(b, n, q, k):
        return jax.pure_callback(counted, jax.ShapeDtypeStruct((1, 1, q.size, k.size), bool), k <= q)

    run = functools.partial(dot_product_attention, query, key, value, implementation="blockwise", block_size=8)
    actual = run(mask=FunctionMask(causal))
    assert calls == [(1, 1, 8, 8)] * (9 + 3)
    assert_close(actual, run(is_causal=True), TOLERANCE)


@pytest.mark.parametrize("name", ["causal", "window", "none"])
def test_the_schedule_of_a_static_mask_is_known_while_tracing(name):
    """With a known schedule nothing is decided at run time, and full attention has no masked loop."""
    query, key, value = draw(1, 32, 40, 1, 1, 4, 4)
    run = functools.partial(dot_product_attention, implementation="blockwise", block_size=8, mask=MASKS[name])
    visible = np.ones((32, 40), bool) if MASKS[name] is None else np.asarray(MASKS[name].materialize(32, 40))[0, 0]
    count = visible.reshape(4, 8, 5, 8).any((1, 3)).sum()
    assert f"schedule=Schedule({count} of 20 blocks)" in str(jax.make_jaxpr(run)(query, key, value))
