"""Sequences split between devices and keys split between calls, against the einsum reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxai.attention import (
    ArrayMask,
    FunctionMask,
    dot_product_attention,
    merge_partials,
    reference_attention,
    ring_attention,
)
from tests.attention.oracle import assert_close

B, T, N, K, H = 2, 32, 4, 2, 8
ALONG = PartitionSpec(None, "time")
MASKS = {
    "full": lambda table, ids: {},
    "causal": lambda table, ids: {"is_causal": True},
    "window": lambda table, ids: {"local_window_size": (9, 1)},
    "segments": lambda table, ids: {"segment_ids": ids, "is_causal": True},
    "lengths": lambda table, ids: {"key_value_seq_lengths": jnp.array([5, 32])},
    "score function": lambda table, ids: {
        "score_mod": lambda score, b, n, q, k: score - table[n] * abs(q - k),
        "sinks": table,
        "is_causal": True,
    },
    "dropout": lambda table, ids: {"dropout_rate": 0.3, "dropout_key": jax.random.key(5)},
}


def arrays():
    """Query, key, value, a number per head, and weights of the output, in float64."""
    random = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (N,), (B, T, N, H)
    return [jnp.asarray(random.normal(size=shape)) for shape in shapes]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.grid(fast=1)
def test_a_ring_of_four_devices_is_attention(name, check_vma, float64):
    """The result, the log-sum-exp, their gradients and a Hessian-vector product."""
    *primals, weights = arrays()
    ids = jnp.arange(T) // 5
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))

    def ring(query, key, value, table, ids):
        options = {"axis_name": "time", "block_size": (4, 4), "return_residual": True}
        return ring_attention(query, key, value, **options, **MASKS[name](table, ids))

    specs = (ALONG, ALONG, ALONG, PartitionSpec(), PartitionSpec("time"))
    ring = jax.shard_map(ring, mesh=mesh, in_specs=specs, out_specs=(ALONG, ALONG), check_vma=check_vma)

    def reference(query, key, value, table, ids):
        return reference_attention(query, key, value, return_residual=True, **MASKS[name](table, ids))

    def everything(attend):
        def energy(*primals):
            out, lse = attend(*primals, ids)
            return (jnp.sin(out) * weights).sum() + (lse**2).sum()

        gradient = jax.grad(energy, (0, 1, 2, 3))
        return attend(*primals, ids), *jax.jvp(gradient, primals, primals)

    actual, desired = (jax.jit(functools.partial(everything, attend))() for attend in (ring, reference))
    assert_close(actual, desired, 1e-9)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.grid(fast=2)
def test_one_token_on_each_device(name, float64):
    """A part along the keys then has size 1 and must still be fetched with them."""
    *primals, _ = arrays()
    primals = *(x[:, :4] for x in primals[:3]), primals[3], jnp.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))

    def attend(function, query, key, value, table, ids):
        return function(query, key, value, return_residual=True, **MASKS[name](table, ids))

    ring = functools.partial(attend, functools.partial(ring_attention, axis_name="time"))
    specs = (ALONG, ALONG, ALONG, PartitionSpec(), ALONG)
    ring = jax.jit(jax.shard_map(ring, mesh=mesh, in_specs=specs, out_specs=(ALONG, ALONG)))
    assert_close(ring(*primals), attend(reference_attention, *primals), 1e-10)


@pytest.mark.parametrize("tokens", [4, 8])
@pytest.mark.parametrize("of", ["queries", "keys", "neither"])
@pytest.mark.grid(fast=1)
def test_arrays_along_one_axis_go_round_or_are_refused(of, tokens, float64):
    """With one token per device, a part along the keys looks like an array that broadcasts."""
    query, key, value = (x[:, :tokens] for x in arrays()[:3])
    shape = {"queries": (B, 1, tokens, 1), "keys": (B, 1, 1, tokens), "neither": (B, 1, 1, 1)}[of]
    seen = np.random.default_rng(1).random(shape) < 0.6
    spec = {
        "queries": PartitionSpec(None, None, "time"),
        "keys": PartitionSpec(None, None, None, "time"),
        "neither": PartitionSpec(),
    }[of]
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))

    def masked(query, key, value, seen):
        return ring_attention(query, key, value, ArrayMask(seen), axis_name="time")

    ring = jax.jit(jax.shard_map(masked, mesh=mesh, in_specs=(ALONG, ALONG, ALONG, spec), out_specs=ALONG))
    if tokens == 4:
        with pytest.raises(ValueError, match=r"array of shape \(2, 1, 1, 1\) where each device holds one key"):
            ring(query, key, value, seen)
    else:
        assert_close(ring(query, key, value, seen), reference_attention(query, key, value, mask=seen), 1e-10)


def test_ring_takes_one_block_size_or_two_and_no_bias():
    query, key, value, _, _ = (x.astype(jnp.float32) for x in arrays())
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))

    def ring(**options):
        attend = functools.partial(ring_attention, axis_name="time", is_causal=True, **options)
        return jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=ALONG, out_specs=ALONG))(query, key, value)

    np.testing.assert_array_equal(ring(block_size=4), ring(block_size=(4, 4)))
    with pytest.raises(ValueError, match="block_size=0 must be a positive int, or two"):
        ring(block_size=0)
    with pytest.raises(ValueError, match=r"bias is over queries and keys.* use a score_mod of positions"):
        ring(bias=jnp.zeros((T, T)))


@pytest.mark.slow
def test_a_ring_keeps_a_share_of_the_keys():
    """In the backward pass no device stores all keys: they are fetched again."""
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))
    ring = functools.partial(ring_attention, axis_name="time", is_causal=True, block_size=(64, 64))
    ring = jax.shard_map(ring, mesh=mesh, in_specs=ALONG, out_specs=ALONG)
    whole = jax.ShapeDtypeStruct((1, 8192, 2, 64), np.float32)
    gradient = jax.jit(jax.grad(lambda *qkv: ring(*qkv).sum(), (0, 1, 2))).lower(whole, whole, whole).compile()
    share = 8192 // 4 * 2 * 64 * 4
    assert gradient.memory_analysis().temp_size_in_bytes < 24 * share  # all keys of every step would be 32 and more


def test_ring_refuses_arrays_over_queries_and_keys():
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))
    ring = functools.partial(ring_attention, axis_name="time", mask=ArrayMask(np.ones((8, 8), bool)))
    query, key, value, _, _ = arrays()
    with pytest.raises(ValueError, match="mask has an array over queries and keys"):
        jax.shard_map(ring, mesh=mesh, in_specs=ALONG, out_specs=ALONG)(query, key, value)


@pytest.mark.slow
def test_a_ring_takes_positions_of_the_whole_sequence(float64):
    query, key, value, _, _ = arrays()
    mask = FunctionMask(lambda b, n, q, k: (q + k) % 3 > 0)
    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))
    ring = functools.partial(ring_attention, axis_name="time", mask=mask)
    out = jax.shard_map(ring, mesh=mesh, in_specs=ALONG, out_specs=ALONG)(query, key, value)
    assert_close(out, reference_attention(query, key, value, mask=mask), 1e-10)


@pytest.mark.parametrize("seen", [(0, 7), (3, 9)], ids=["one part hidden from some", "each part hidden from some"])
def test_partial_results_merge(seen, float64):
    """Keys split after the twelfth; derivatives up to the second, also of rows that see only one of the parts."""
    query, key, value, _, weights = arrays()
    mask = np.ones((T, T), bool)
    mask[: seen[1], :12] = False
    mask[seen[0] : 4, 12:] = False

    def merged(query, key, value):
        first = dot_product_attention(query, key[:, :12], value[:, :12], mask=mask[:, :12], return_residual=True)
        second = dot_product_attention(query, key[:, 12:], value[:, 12:], mask=mask[:, 12:], return_residual=True)
        return merge_partials(first, second)

    def whole(query, key, value):
        return reference_attention(query, key, value, mask=mask, return_residual=True)

    def everything(attend):
        def energy(*qkv):
            out, lse = attend(*qkv)
            return (jnp.sin(out) * weights).sum() + jnp.exp(0.3 * lse).sum()

        qkv = query, key, value
        return attend(*qkv), *jax.jvp(jax.grad(energy, (0, 1, 2)), qkv, qkv)

    actual, desired = (jax.jit(functools.partial(everything, attend))() for attend in (merged, whole))
    assert_close(actual, desired, 1e-10)
