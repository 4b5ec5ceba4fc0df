"""Decoding with a cache against full attention on the whole sequence, by an oracle in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from jaxai.attention.cache import KVCache
from jaxai.attention.position import alibi, relative_bias

TOLERANCE = {"float32": 2e-6, "float64": 1e-13}  # a dozen products of size 1

SIZES = ["batch", "capacity", "kv_heads", "head_size", "value_head_size", "dtype", "window"]
init = jax.jit(KVCache.init, static_argnames=SIZES)
update = jax.jit(KVCache.update)
attend = jax.jit(KVCache.attend, static_argnames="return_residual")


def draw(batch=2, t=9, heads=4, kv_heads=2, size=6, value_size=5, dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = ((batch, t, heads, size), (batch, t, kv_heads, size), (batch, t, kv_heads, value_size))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def oracle(q, k, v, window=None, is_causal=True, cap=None, bias=None, scale=None):
    """Attention of whole sequences and the log-sum-exp of its scores, in float64; bias [B, N, T, S]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat(group, 2), v.repeat(group, 2)
    score = np.einsum("BTNH,BSNH->BNTS", q, k) * (q.shape[3] ** -0.5 if scale is None else scale)
    score = score if cap is None else cap * np.tanh(score / cap)
    score = score if bias is None else score + bias
    i, j = np.arange(q.shape[1])[:, None], np.arange(k.shape[1])[None]
    hidden = (is_causal & (j > i)) | (j <= i - (window or k.shape[1] + q.shape[1]))
    weights = np.where(hidden, 0, np.exp(score))
    total = weights.sum(-1)
    return np.einsum("BNTS,BSNV->BTNV", weights / total[..., None], v), np.log(total).swapaxes(1, 2)


def empty(k, v, capacity, **options):
    size = {"kv_heads": k.shape[2], "head_size": k.shape[3], "value_head_size": v.shape[3]}
    return init(k.shape[0], capacity, **size, dtype=k.dtype, **options)


def decode(cache, q, k, v, chunks, **options):
    """Outputs of the whole sequence, fed in chunks of the given sizes."""

    @jax.jit
    def step(cache, q, k, v):
        cache = cache.update(k, v)
        return cache, cache.attend(q, **options)

    outs, ends = [], np.cumsum(chunks)
    for start, end in zip(ends - chunks, ends, strict=True):
        cache, out = step(cache, *(x[:, start:end] for x in (q, k, v)))
        outs.append(out)
    return jnp.concatenate(outs, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chunks", [[1] * 9, [9], [4, 1, 3, 1]])
@pytest.mark.grid(fast=5)
def test_decoding_is_causal_attention(chunks, kv_heads, dtype):
    with jax.enable_x64(dtype == "float64"):
        q, k, v = draw(kv_heads=kv_heads, dtype=dtype)
        actual = decode(empty(k, v, 11), q, k, v, chunks)
        assert actual.dtype == q.dtype
        np.testing.assert_allclose(actual, oracle(q, k, v)[0], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("capacity", "chunks"), [(3, [1] * 9), (4, [2, 1, 2, 2, 1, 1]), (5, [3, 3, 3]), (20, [9])])
def test_a_ring_is_a_sliding_window(capacity, chunks):
    q, k, v = draw()
    actual = decode(empty(k, v, capacity, window=3), q, k, v, chunks)
    np.testing.assert_allclose(actual, oracle(q, k, v, window=3)[0], atol=TOLERANCE["float32"])


@pytest.mark.parametrize(("capacity", "window"), [(9, None), (8, 4)])
@pytest.mark.grid(fast=1)
def test_rows_of_different_lengths(capacity, window):
    """Each row gets its own number of tokens at a time; padding is 1e9, so that a leak would show."""
    q, k, v = draw(batch=3)
    wanted, residual = oracle(q, k, v, window)
    cache, done = empty(k, v, capacity, window=window), np.zeros(3, int)
    for counts in ([4, 0, 2], [1, 1, 1], [3, 5, 0], [1, 2, 4]):
        chunk = np.full((3, 5), -1)
        for row, count in enumerate(counts):
            chunk[row, :count] = done[row] + np.arange(count)
        index, real = np.maximum(chunk, 0), chunk >= 0
        part = [
            np.where(real[..., None, None], x[np.arange(3)[:, None], index], np.float32(1e9 if i else 1))
            for i, x in enumerate((q, k, v))
        ]
        lengths = np.array(counts)
        cache = update(cache, part[1], part[2], lengths)
        out, log_sum = jax.device_get(attend(cache, part[0], lengths, return_residual=True))
        rows, columns = np.nonzero(real)
        np.testing.assert_allclose(out[rows, columns], wanted[rows, chunk[real]], atol=TOLERANCE["float32"])
        np.testing.assert_allclose(log_sum[rows, columns], residual[rows, chunk[real]], atol=TOLERANCE["float32"])
        np.testing.assert_array_equal(out[~real], 0)
        np.testing.assert_array_equal(log_sum[~real], -np.inf)
        done += counts
        np.testing.assert_array_equal(cache.lengths, done)


def test_options_are_those_of_attention():
    q, k, v = draw()
    ahead = np.arange(9)[None] - np.arange(9)[:, None]
    batch, head = np.arange(2).reshape(2, 1, 1, 1), np.arange(4).reshape(1, 4, 1, 1)
    for options, known in (
        ({"scale": 0.3}, {"scale": 0.3}),
        ({"scale": 4.0, "logits_soft_cap": 2.0}, {"scale": 4.0, "cap": 2.0}),
        ({"score_mod": alibi(4)}, {"bias": -(0.25 ** (head + 1)) * np.abs(ahead)}),
        ({"score_mod": lambda s, b, n, q, k: s + (b + n) * 0.1 * (k - q)}, {"bias": (batch + head) * 0.1 * ahead}),
    ):
        actual = decode(empty(k, v, 9), q, k, v, [4, 1, 4], **options)
        np.testing.assert_allclose(actual, oracle(q, k, v, **known)[0], atol=TOLERANCE["float32"])
    for window in (None, 3):
        everything = decode(empty(k, v, 12, window=window), q, k, v, [9], is_causal=False)
        wanted = oracle(q, k, v, window, is_causal=False)[0]
        np.testing.assert_allclose(everything, wanted, atol=TOLERANCE["float32"])


def test_score_modifications_see_true_positions_in_a_ring():
    q, k, v = (x[:1] for x in draw())
    table = jnp.asarray(np.random.default_rng(1).standard_normal((8, 4)), jnp.float32)
    mod = relative_bias(table, bidirectional=False, max_distance=6)
    zero, index = np.zeros((1, 1, 1, 1), int), np.arange(9)
    indices = zero, zero, index.reshape(1, 1, 9, 1), index.reshape(1, 1, 1, 9)
    bias = jax.jit(lambda score: mod(score, *indices))(np.zeros((1, 4, 9, 9), np.float32))
    actual = decode(empty(k, v, 6, window=5), q, k, v, [2, 1, 2, 1, 1, 2], score_mod=mod)
    np.testing.assert_allclose(actual, oracle(q, k, v, window=5, bias=bias)[0], atol=TOLERANCE["float32"])


@pytest.mark.parametrize(("name", "bad"), [("query", np.nan), ("key", np.nan), ("key", -np.inf), ("value", np.nan)])
@pytest.mark.parametrize(("window", "at", "shows"), [(2, 0, [True, True, False]), (None, 1, [False, True, True])])
@pytest.mark.parametrize("chunks", [[1, 1, 1], [2, 1]])
@pytest.mark.grid(fast=1)
def test_nan_shows_where_it_is_seen_and_nowhere_else(name, bad, window, at, shows, chunks):
    """A NaN shows for queries that see it only: not for other key heads, outside the window, or earlier."""
    arrays = dict(zip(("query", "key", "value"), draw(t=3), strict=True))
    spoilt = arrays | {name: arrays[name].copy()}
    spoilt[name][0, at, 0, 1] = bad
    shows = np.arange(3) == at if name == "query" else np.array(shows)
    hit = np.zeros((2, 3, 4), bool)
    hit[0, shows, : 1 if name == "query" else 2] = True

    def summed(query, key, value):
        out = decode(empty(key, value, 4, window=window), query, key, value, chunks, logits_soft_cap=5.0)
        return jnp.where(hit[..., None], 0, out).sum(), out

    run = jax.jit(jax.value_and_grad(summed, (0, 1, 2), has_aux=True))
    (_, actual), gradient = jax.device_get(run(*spoilt.values()))
    (_, wanted), _ = jax.device_get(run(*arrays.values()))
    assert np.isnan(actual[hit]).all()
    np.testing.assert_allclose(actual[~hit], wanted[~hit], atol=TOLERANCE["float32"])
    assert np.isfinite(gradient[0][0, ~shows]).all()
    assert all(np.isfinite(x[1]).all() for x in gradient)


def test_a_slot_is_sound_again_once_overwritten():
    q, k, v = draw(t=5)
    v[:, 0] = np.nan
    cache = empty(k, v, 2, window=2)
    for t in range(5):
        cache = update(cache, k[:, t : t + 1], v[:, t : t + 1])
        assert np.any(cache.nonfinite) == (t < 2)
        assert np.isnan(attend(cache, q[:, t : t + 1])).any() == (t < 2)


def test_tokens_past_the_capacity_are_dropped_and_reported():
    q, k, v = draw()
    cache = update(empty(k, v, 6), k[:, :5], v[:, :5])
    assert cache.overflowed.tolist() == [False, False]
    cache = update(cache, k[:, 5:], v[:, 5:], np.array([1, 3]))
    assert cache.overflowed.tolist() == [False, True]
    assert cache.lengths.tolist() == [6, 8]
    np.testing.assert_array_equal(cache.keys, np.moveaxis(k[:, :6], 1, 3))
    np.testing.assert_array_equal(cache.values, np.moveaxis(v[:, :6], 1, 2))
    wanted = oracle(q[:, 5:6], k[:, :6], v[:, :6], is_causal=False)[0]
    np.testing.assert_allclose(attend(cache, q[:, 5:6]), wanted, atol=TOLERANCE["float32"])
    ring = empty(k, v, 6, window=2)
    for _ in range(2):
        ring = update(ring, k[:, :5], v[:, :5])
    assert ring.overflowed.tolist() == [False, False]


def test_an_empty_cache_gives_zero():
    q, k, v = draw()
    out, residual = attend(empty(k, v, 4), q[:, :1], return_residual=True)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(residual, -np.inf)


def test_bfloat16_is_as_good_as_rounding_the_weights():
    q, k, v = draw(t=64, size=16, value_size=16, dtype="bfloat16")
    exact = oracle(q, k, v)[0]
    error = lambda x: np.abs(np.asarray(x, np.float64) - exact).max()  # noqa: E731
    allowed = 2 * error(jax.jit(functools.partial(jax.nn.dot_product_attention, is_causal=True))(q, k, v))
    for repeats in (1, 2):  # with as many key heads as heads, single rows are padded to eight
        keys, values = (x.repeat(repeats, axis=2) for x in (k, v))
        actual = decode(empty(keys, values, 64), q, keys, values, [60, *[1] * 4])
        assert actual.dtype == jnp.bfloat16
        assert error(actual) <= allowed


def test_decoding_scans_and_updates_in_place():
    q, k, v = draw()
    cache = empty(k, v, 64)

    def step(cache, token):
        q, k, v = (x[:, None] for x in token)
        cache = cache.update(k, v)
        return cache, cache.attend(q)[:, 0]

    _, outs = jax.lax.scan(step, cache, tuple(np.moveaxis(x, 1, 0) for x in (q, k, v)))
    np.testing.assert_allclose(np.moveaxis(outs, 0, 1), oracle(q, k, v)[0], atol=TOLERANCE["float32"])

    one = jax.jit(step, donate_argnums=0)
    memory = one.lower(cache, (q[:, 0], k[:, 0], v[:, 0])).compile().memory_analysis()
    size = sum(x.nbytes for x in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < cache.values.nbytes  # no second copy of either buffer
    where = cache.keys.unsafe_buffer_pointer()
    cache, _ = one(cache, (q[:, 0], k[:, 0], v[:, 0]))
    assert cache.keys.unsafe_buffer_pointer() == where


@pytest.mark.parametrize(("capacity", "window"), [(9, None), (4, 3)])
def test_gradients_flow_through_the_cache(capacity, window):
    with jax.enable_x64(True):
        q, k, v = draw(dtype="float64")
        group = 2

        def dense(q, k, v):
            k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
            score = jnp.einsum("BTNH,BSNH->BNTS", q, k) * q.shape[3] ** -0.5
            i, j = jnp.arange(9)[:, None], jnp.arange(9)[None]
            seen = (j <= i) & (j > i - (window or 9))
            return jnp.einsum("BNTS,BSNV->BTNV", jax.nn.softmax(jnp.where(seen[None, None], score, -jnp.inf)), v)

        ours = lambda q, k, v: decode(empty(k, v, capacity, window=window), q, k, v, [2, 1, 2, 1, 1, 1, 1])  # noqa: E731
        loss = lambda f: jax.jit(jax.grad(lambda *x: jnp.sum(jnp.sin(f(*x))), (0, 1, 2)))  # noqa: E731
        for actual, wanted in zip(loss(ours)(q, k, v), loss(dense)(q, k, v), strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-12)


def test_a_cache_stores_in_its_own_dtype():
    q, k, v = draw()
    cache = update(init(2, 9, 2, 6, value_head_size=5, dtype=jnp.bfloat16), k, v)
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    out = attend(cache, q)
    assert out.dtype == jnp.float32
    rounded = (x.astype(jnp.bfloat16).astype(np.float32) for x in (k, v))
    np.testing.assert_allclose(out, oracle(q, *rounded)[0], atol=TOLERANCE["float32"])


CACHE, RING = {"batch": 2, "capacity": 8, "kv_heads": 2, "head_size": 6}, {"window": 3, "capacity": 4}
X = jnp.ones


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, r: KVCache.init(0, 8, 2, 6), "batch=0: give at least 1"),
        (lambda c, r: KVCache.init(2, 8, 2, 6, window=0), "window=0: give at least 1"),
        (lambda c, r: KVCache.init(2, 8, 2, 6, window=9), r"capacity=8 cannot hold window=9.*window \+ chunk - 1"),
        (lambda c, r: c.update(X((2, 1, 3, 6)), X((2, 1, 2, 6))), r"key of shape \(2, 1, 3, 6\).*\[2, T, 2, 6\]"),
        (lambda c, r: c.update(X((2, 1, 2, 6)), X((2, 3, 2, 6))), r"value of shape \(2, 3, 2, 6\).*T of key and value"),
        (lambda c, r: c.update(X(2), X(2)), r"key of shape \(2,\) doesn't fit"),
        (lambda c, r: c.update(*[X((2, 1, 2, 6))] * 2, X(3, int)), r"lengths of shape \(3,\): give one for each"),
        (lambda c, r: c.attend(X((2, 1, 3, 6))), r"query of shape \(2, 1, 3, 6\).*a multiple of 2, 6\]"),
        (lambda c, r: c.attend(X((2, 1, 2, 6), int)), "query has dtype int32: give floats, for instance query.astype"),
        (
            lambda c, r: c.attend(X((2, 1, 2, 6)), score_mod=lambda s, *i: s[0]),
            r"score_mod changed the shape .*keep it",
        ),
        (lambda c, r: c.attend(X((2, 1, 2, 6)), X(1, int)), r"lengths of shape \(1,\)"),
        (lambda c, r: c.attend(X((2, 1, 2, 6)), logits_soft_cap=0.0), "logits_soft_cap=0.0: give a positive"),
        (lambda c, r: r.update(*[X((2, 3, 2, 6))] * 2), "key of 3 tokens overruns window=3.*give 2 .*of 5"),
        (lambda c, r: r.attend(X((2, 3, 2, 6))), "query of 3 tokens overruns"),
    ],
)
def test_errors_name_the_argument_and_the_fix(call, message, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such checks before ours
    with pytest.raises(ValueError, match=message):
        call(KVCache.init(**CACHE), KVCache.init(**CACHE | RING))
