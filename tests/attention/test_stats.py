"""Statistics of attention against the weights of `reference_attention`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from jaxai.attention.api import reference_attention
from jaxai.attention.masks import ArrayMask, Causal, FunctionMask, Segments
from jaxai.attention.position import alibi, relative_bias
from jaxai.attention.stats import AttentionStats, attention_stats

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}  # sums over 13 rows of terms of size 1, and their gradients
ROWS = [0, 12, 5, 5]


def draw(dtype="float64", kv_heads=2, t=13, s=11):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((2, t, 4, 6), (2, s, kv_heads, 6)))


def numbers(*shape):
    return np.random.default_rng(1).standard_normal(shape)


CASES = {  # name: what builds the options, in the test's precision
    "plain": lambda: {},
    "causal": lambda: {"is_causal": True, "scale": 0.7},
    "rows that see nothing": lambda: {"mask": Causal(-3), "key_value_seq_lengths": jnp.array([11, 0])},
    "query lengths": lambda: {"query_seq_lengths": jnp.array([4, 13])},
    "window": lambda: {"local_window_size": (2, 1)},
    "segments": lambda: {"segment_ids": (jnp.arange(13)[None] // 4, jnp.arange(11)[None] // 3)},
    "bias of rows": lambda: {"bias": jnp.asarray(numbers(4, 13, 1)), "logits_soft_cap": 1.5},
    "bias and array mask": lambda: {"bias": jnp.asarray(numbers(2, 1, 13, 11)), "mask": jnp.array(numbers(13, 11) > 0)},
    "mask of rows": lambda: {"mask": ArrayMask(jnp.array(numbers(2, 1, 13, 1) > -1)) & Causal(2)},
    "function mask": lambda: {"mask": FunctionMask(lambda b, n, q, k: (q * k + b) % 3 != n)},
    "sinks": lambda: {"sinks": jnp.asarray(numbers(4)), "mask": Causal(-1)},
    "relative bias": lambda: {"score_mod": relative_bias(jnp.asarray(numbers(8, 4)), max_distance=6)},
    "alibi of segments": lambda: {"score_mod": alibi(4), "mask": Segments(jnp.arange(13) // 5, jnp.arange(11) // 5)},
}


def oracle(query, key, sinks=None, **options):
    """All statistics from the dense weights: with unit vectors as values, attention's result is its weights."""
    S = key.shape[1]
    units = jnp.broadcast_to(jnp.eye(S, dtype=key.dtype)[None, :, None], (*key.shape[:3], S))
    weights, lse = reference_attention(query, key, units, sinks=sinks, return_residual=True, **options)
    seen = weights > 0
    logs = jnp.log(jnp.where(seen, weights, 1))
    entropy = -(weights * logs).sum(-1)
    if sinks is not None:
        log_share = sinks[None, None] - lse
        entropy -= jnp.exp(log_share) * log_share
    largest = jnp.where(seen, logs + jnp.where(jnp.isfinite(lse), lse, 0)[..., None], -jnp.inf).max(-1)
    return AttentionStats(lse, largest, entropy, weights.sum(1).swapaxes(1, 2), weights[:, np.array(ROWS)])


def dense(query, key, **options):
    return jax.jit(functools.partial(oracle, **options))(query, key)


def assert_close(actual, desired, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, desired)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.grid(fast=2)
def test_statistics_are_those_of_the_dense_weights(case):
    with jax.enable_x64(True):
        (query, key), options = draw(), CASES[case]()
        actual = attention_stats(query, key, rows=ROWS, block_size=(5, 4), **options)
        assert_close(actual, dense(query, key, **options), TOLERANCE["float64"])


@pytest.mark.parametrize(
    "case", ["rows that see nothing", "bias of rows", "function mask", "sinks", "relative bias", "alibi of segments"]
)
@pytest.mark.grid(fast=1)
def test_gradients_are_those_of_the_dense_weights(case):
    """Gradients of queries, keys and each float array of the options, and a second derivative in one direction."""
    with jax.enable_x64(True):
        options, rng = CASES[case](), np.random.default_rng(2)
        leaves, treedef = jax.tree.flatten((*draw(), options))
        places = [n for n, x in enumerate(leaves) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)]
        shapes = jax.eval_shape(functools.partial(oracle, **options), *draw())
        factors = jax.tree.map(lambda x: rng.standard_normal(x.shape), shapes)

        def loss(floats, f):
            every = list(leaves)
            for place, x in zip(places, floats, strict=True):
                every[place] = x
            query, key, options = jax.tree.unflatten(treedef, every)
            stats = f(query, key, **options)
            lse = jnp.where(jnp.isfinite(stats.log_sum_exp), stats.log_sum_exp, 0)
            results = lse, stats.entropy, stats.mass, stats.weights
            wanted = factors.log_sum_exp, factors.entropy, factors.mass, factors.weights
            return sum((factor * jnp.sin(x)).sum() for factor, x in zip(wanted, results, strict=True))

        def derivatives(f):
            def both(floats):
                return jax.jvp(jax.grad(lambda floats: loss(floats, f)), (floats,), ([jnp.cos(x) for x in floats],))

            return jax.jit(both)([leaves[n] for n in places])

        actual = derivatives(lambda *args, **options: attention_stats(*args, rows=ROWS, block_size=(5, 4), **options))
        assert_close(actual, derivatives(oracle), TOLERANCE["float64"])


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("block_size", [None, 1, (16, 3)])
@pytest.mark.grid(fast=2)
def test_heads_and_block_sizes_in_float32(kv_heads, block_size):
    query, key = draw("float32", kv_heads)
    actual = attention_stats(query, key, is_causal=True, rows=jnp.array(ROWS), block_size=block_size)
    assert_close(actual, dense(query, key, is_causal=True), TOLERANCE["float32"])


def test_half_precision_gives_float32():
    query, key = (x.astype(jnp.bfloat16) for x in draw("float32"))
    actual = attention_stats(query, key, rows=ROWS)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(actual))
    desired = dense(query.astype(jnp.float32), key.astype(jnp.float32))
    assert_close(actual, desired, TOLERANCE["float32"])


def test_vmap_and_no_batch_axis():
    query, key = draw("float32")
    offsets, rows = jnp.array([-4, 1]), jnp.array([[0, 3], [12, 1]])

    def one(query, key, offset, rows):
        return attention_stats(query, key, mask=Causal(offset), rows=rows, block_size=4)

    actual = jax.jit(jax.vmap(one))(query, key, offsets, rows)
    together = [jax.jit(one)(*(np.asarray(x)[n] for x in (query, key, offsets, rows))) for n in range(2)]
    assert_close(actual, jax.tree.map(lambda *x: np.stack(x), *together), TOLERANCE["float32"])


def test_shard_map():
    """A batch row on each of two devices, as in data-parallel training."""
    query, key = draw("float32")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def entropies(query, key):
        return attention_stats(query, key, is_causal=True, rows=ROWS, block_size=4)

    mapped = jax.shard_map(entropies, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
    assert_close(jax.jit(mapped)(query, key), entropies(query, key), TOLERANCE["float32"])


def test_rows_that_see_nothing():
    query, key = draw("float32")
    stats = attention_stats(query, key, key_value_seq_lengths=jnp.array([0, 2]), rows=[1], sinks=jnp.zeros(4))
    assert (stats.max_logit[0] == -jnp.inf).all()
    for result in (stats.log_sum_exp, stats.entropy, stats.mass, stats.weights):  # all to the sink, of logit 0
        np.testing.assert_array_equal(result[0], 0)
    assert attention_stats(query, key).weights is None


def test_large_scores_keep_their_entropy():
    query, key = jnp.full((1, 2, 1, 1), 1e4), jnp.full((1, 3, 1, 1), 1e4)
    np.testing.assert_allclose(attention_stats(query, key).entropy, np.log(3), rtol=1e-6)


def test_masked_nan_stays_where_it_is():
    query, key = draw("float32")
    desired = attention_stats(query, key, is_causal=True, rows=ROWS, block_size=4)
    actual = attention_stats(query, key.at[:, 9].set(jnp.nan), is_causal=True, rows=ROWS, block_size=4)
    for name in ("log_sum_exp", "max_logit", "entropy"):
        np.testing.assert_allclose(getattr(actual, name)[:, :9], getattr(desired, name)[:, :9], atol=1e-6)
        assert jnp.isnan(getattr(actual, name)[:, 9:]).all()
    np.testing.assert_allclose(actual.weights[:, 0], desired.weights[:, 0], atol=1e-6)


def test_no_score_matrix_forward_or_backward():
    query, key = (jnp.ones((1, 96, 1, 2)) for _ in range(2))

    def loss(query, key):
        stats = attention_stats(query, key, is_causal=True, rows=[3], block_size=8)
        return sum(x.sum() for x in (stats.log_sum_exp, stats.entropy, stats.mass, stats.weights))

    text = jax.jit(jax.grad(loss, (0, 1))).lower(query, key).compile().as_text()
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"[fsu]\d+\[([\d,]+)\]", text)]
    assert max(sizes) < 96 * 96 / 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": [13]}, r"rows=\[13\] must be ints from 0 to 12"),
        ({"rows": [-1]}, r"rows=\[-1\] must be ints from 0 to 12"),
        ({"rows": [0.5]}, "rows="),
        ({"rows": jnp.zeros((2, 2), int)}, r"rows has shape \(2, 2\)"),
        ({"block_size": 0}, "block_size=0"),
        ({"sinks": jnp.zeros(3)}, "sinks has shape"),
        ({"bias": jnp.zeros((5, 11))}, "bias has shape"),
    ],
)
def test_errors_name_the_argument_and_the_fix(options, message, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such checks before ours
    with pytest.raises(ValueError, match=message):
        attention_stats(*draw("float32"), **options)
