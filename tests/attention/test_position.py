"""Rotary embedding and score modifications against NumPy, to second order, on the whole and block by block."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

from jaxai.attention.position import alibi, relative_bias, rotary, soft_cap

# (buckets, bidirectional, max_distance): T5's encoder and decoder, and small odd ones
TABLES = [(32, True, 128), (32, False, 128), (8, True, 20), (5, False, 9), (4, True, 2)]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def indices(shape, start_q=0, start_k=0):
    b, n, t, s = (np.arange(size, dtype=np.int32) for size in shape)
    q, k = start_q + t, start_k + s
    return b.reshape(-1, 1, 1, 1), n.reshape(1, -1, 1, 1), q.reshape(1, 1, -1, 1), k.reshape(1, 1, 1, -1)


@jax.jit
def apply(mod, score, start_q=0, start_k=0):
    return mod(score, *indices(score.shape, start_q, start_k))


def t5_bucket(relative, buckets, bidirectional, max_distance):
    """One distance at a time, in the words of mesh-tensorflow's `_relative_position_bucket`."""
    bucket, n = 0, -relative
    if bidirectional:
        buckets //= 2
        bucket += buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return bucket + n
    share = np.log(np.float32(n) / np.float32(exact)) / np.float32(np.log(max_distance / exact))
    return bucket + min(exact + int(share * np.float32(buckets - exact)), buckets - 1)


def dense_bias(table, t, s, bidirectional, max_distance, start_q=0, start_k=0):
    """The bias [1, N, t, s] by one gather of t * s rows."""
    distance = (start_k + np.arange(s))[None] - (start_q + np.arange(t))[:, None]
    rows = [[t5_bucket(int(d), table.shape[0], bidirectional, max_distance) for d in line] for line in distance]
    return jnp.moveaxis(table[np.array(rows)], 2, 0)[None]


def turned(x, positions, base=10000.0):
    """Rotary embedding as a complex product, in float64; x [B, T, N, H], positions [B, T]."""
    x = np.asarray(x, np.float64)
    half = x.shape[-1] // 2
    angle = np.asarray(positions, np.float64)[:, :, None, None] * base ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_rotary_is_a_complex_product(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = normal(0, 2, 7, 3, 8).astype(dtype)
        # angles up to 7 radians; bfloat16 keeps 8 bits of values up to 3
        tolerance = {"float32": 2e-6, "float64": 1e-12, "bfloat16": 2e-2}[dtype]
        rows = np.array([[0, 1, 2, 3, 4, 5, 6], [3, 1, 4, 1, 5, 0, 2]])
        turn = jax.jit(functools.partial(rotary, base=100.0))
        for positions in (None, jnp.asarray(rows), jnp.asarray(rows[1]), jnp.asarray(rows + 0.5)):
            wanted = rows[:1].repeat(2, 0) if positions is None else np.broadcast_to(positions, (2, 7))
            actual = turn(x, positions)
            assert actual.dtype == x.dtype
            np.testing.assert_allclose(np.asarray(actual, np.float64), turned(x, wanted, 100.0), atol=tolerance)


def test_rotary_products_depend_on_the_distance_alone():
    q, k = normal(0, 5, 2, 8), normal(1, 5, 2, 8)

    @jax.jit
    def product(shift):
        return jnp.einsum("TNH,SNH->NTS", *(rotary(x, jnp.arange(5) + shift) for x in (q, k)))

    np.testing.assert_allclose(product(0), product(100), atol=5e-5)  # float32 angles near 100 are good to 4e-6


def test_rotary_keeps_bfloat16_angles_exact_at_far_positions():
    x, positions = jnp.ones((1, 2, 1, 64), jnp.bfloat16), np.array([4001, 4002])
    actual = np.asarray(jax.jit(rotary)(x, positions), np.float64)
    np.testing.assert_allclose(actual, turned(x, positions[None]), atol=5e-3)  # half a unit of bfloat16 is 4e-3


def test_alibi_slopes_are_the_papers():
    np.testing.assert_allclose(alibi(8).slopes, 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi(16).slopes, 2.0 ** (-np.arange(1, 17) / 2), rtol=1e-6)
    twelve = [*2.0 ** -np.arange(1, 9), *2.0 ** -(np.arange(1, 8, 2) / 2)]  # 8, then every other one of 16
    np.testing.assert_allclose(alibi(12).slopes, twelve, rtol=1e-6)
    for one in (1, np.int64(1)):
        np.testing.assert_allclose(alibi(one).slopes, [2.0**-8])


def test_alibi_lowers_scores_by_the_distance():
    score, slopes = normal(0, 2, 3, 4, 6), jnp.array([0.5, 0.1, -0.2])
    distance = np.abs(np.arange(4)[:, None] + 2 - np.arange(6)[None])
    wanted = np.asarray(score) - np.asarray(slopes)[:, None, None] * distance
    np.testing.assert_allclose(apply(alibi(slopes), score, start_q=2), wanted, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda mod: jnp.sum(apply(mod, score, start_q=2) * score)))(alibi(slopes)).slopes
    np.testing.assert_allclose(gradient, -np.einsum("BNTS,TS->N", score, distance), rtol=1e-5)


def test_t5_buckets_of_known_distances():
    # Hugging Face's T5 _relative_position_bucket for relative_position = k - q, 32 buckets, max_distance 128
    distances = np.array([-200, -128, -64, -32, -20, -16, -8, -7, -1, 0, 1, 7, 8, 11, 12, 16, 64, 127, 500])
    both = [15, 15, 14, 12, 10, 10, 8, 7, 1, 0, 17, 23, 24, 24, 25, 26, 30, 31, 31]
    past = [31, 31, 26, 21, 17, 16, 8, 7, 1, *[0] * 10]
    assert [t5_bucket(int(d), 32, True, 128) for d in distances] == both
    assert [t5_bucket(int(d), 32, False, 128) for d in distances] == past
    for wanted, bidirectional in ((both, True), (past, False)):
        mod = relative_bias(jnp.arange(32.0)[:, None], bidirectional=bidirectional)
        columns = [apply(mod, jnp.zeros((1, 1, 1, 1)), start_k=int(d)).item() for d in distances]
        assert columns == wanted


@pytest.mark.parametrize(("buckets", "bidirectional", "max_distance"), TABLES)
def test_relative_bias_is_a_dense_gather_to_second_order(buckets, bidirectional, max_distance):
    with jax.enable_x64(True):
        score, table, tangent = normal(0, 2, 3, 5, 9), normal(1, buckets, 3), normal(2, buckets, 3)
        ours = lambda table: apply(  # noqa: E731
            relative_bias(table, bidirectional=bidirectional, max_distance=max_distance), score, 7, 3
        )
        dense = lambda table: score + dense_bias(table, 5, 9, bidirectional, max_distance, 7, 3)  # noqa: E731

        def derivatives(f):
            gradient = jax.grad(lambda table: jnp.sum(jnp.sin(f(table)) * score))
            return f(table), gradient(table), jax.jvp(f, (table,), (tangent,)), jax.jvp(gradient, (table,), (tangent,))

        both = (jax.tree.leaves(jax.jit(derivatives, static_argnums=0)(f)) for f in (ours, dense))
        for actual, wanted in zip(*both, strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-12)


@pytest.mark.parametrize("mod", ["alibi", "bidirectional", "causal", "soft_cap"])
def test_blocks_are_slices_of_the_whole(mod):
    mod = {
        "alibi": alibi(3),
        "bidirectional": relative_bias(normal(1, 8, 3), max_distance=16),
        "causal": relative_bias(normal(1, 6, 3), bidirectional=False, max_distance=16),
        "soft_cap": soft_cap(2.0),
    }[mod]
    score = np.asarray(normal(0, 2, 3, 12, 30))
    whole = np.asarray(apply(mod, score))
    for t, s in ((1, 1), (1, 30), (12, 1), (4, 10), (6, 5)):
        for q, k in ((0, 0), (12 - t, 0), (0, 30 - s), (12 - t, 30 - s)):
            part = np.s_[:, :, q : q + t, k : k + s]
            np.testing.assert_allclose(apply(mod, score[part], q, k), whole[part], atol=1e-6)  # starts are traced


def test_positions_by_row_or_out_of_order_are_read_one_by_one():
    score, table = np.asarray(normal(0, 2, 3, 4, 6)), normal(1, 8, 3)
    mod = relative_bias(table, max_distance=16)
    order, starts = np.array([4, 5, 0, 1, 2, 3]), np.array([0, 9])
    q = np.broadcast_to((starts[:, None] + np.arange(4)).reshape(2, 1, 4, 1), (2, 1, 4, 6))
    k = np.broadcast_to(order.reshape(1, 1, 1, 6), (2, 1, 4, 6))
    actual = jax.jit(lambda score: mod(score, *indices(score.shape)[:2], q, k))(score)
    for row, start in enumerate(starts):
        wanted = score[row] + np.asarray(dense_bias(table, 4, 6, True, 16, int(start)))[0][..., order]
        np.testing.assert_allclose(actual[row], wanted, atol=1e-6)


def test_relative_bias_indexes_distances_not_entries():
    def indexed(bias):  # the operand types of each gather and scatter in the gradient on 64 queries and keys
        text = jax.jit(jax.grad(lambda table: jnp.sum(bias(table) ** 2))).lower(normal(0, 32, 2)).as_text()
        return " ".join(re.findall(r"stablehlo\.(?:gather|scatter).*? : \((.*?)\) ->", text, re.DOTALL))

    assert "tensor<64x64x1xi32>" in indexed(lambda table: dense_bias(table, 64, 64, True, 128))
    ours = indexed(lambda table: apply(relative_bias(table), jnp.zeros((1, 2, 64, 64))))
    assert "tensor<127x1xi32>" in ours  # 64 + 64 - 1 distances
    assert "tensor<64x64x1xi32>" not in ours


def test_vmap_over_tables_and_slopes():
    score, tables, slopes = normal(0, 2, 3, 4, 4), normal(1, 5, 8, 3), normal(2, 5, 3)
    for build, stacked in ((relative_bias, tables), (alibi, slopes)):
        f = jax.jit(lambda x, build=build: apply(build(x), score))
        np.testing.assert_allclose(jax.vmap(f)(stacked), [f(x) for x in np.asarray(stacked)], atol=1e-6)


def test_modifications_are_pytrees_that_jit_reuses():
    score, traces = normal(0, 1, 2, 3, 3), []
    compiled = jax.jit(lambda mod, score: traces.append(mod) or apply(mod, score))
    for mod in (alibi(2), alibi(jnp.ones(2)), soft_cap(3.0), soft_cap(3.0), soft_cap(4.0)):
        np.testing.assert_allclose(compiled(mod, score), mod(score, *indices(score.shape)), atol=1e-6)
    assert len(traces) == 3
    assert jax.tree.leaves(soft_cap(3.0)) == []
    assert jax.tree.leaves(relative_bias(jnp.ones((4, 2))))[0].shape == (4, 2)


def test_soft_cap_bounds_the_score():
    score = 10 * normal(0, 1, 2, 3, 4)
    np.testing.assert_allclose(apply(soft_cap(5.0), score), 5 * np.tanh(np.asarray(score) / 5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_keep_their_dtype(dtype):
    with jax.enable_x64(True):
        score = normal(0, 1, 2, 3, 3).astype(dtype)
        for mod in (alibi(2), relative_bias(normal(1, 4, 2)), soft_cap(3.0)):
            assert apply(mod, score).dtype == score.dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotary(jnp.ones((1, 2, 1, 3))), r"x of shape \(1, 2, 1, 3\) has 3 features.*even"),
        (lambda: rotary(jnp.ones((1, 2, 1, 4)), jnp.arange(3)), r"positions of shape \(3,\) for x \(1, 2, 1, 4\)"),
        (lambda: rotary(jnp.ones((1, 2, 1, 4)), jnp.array(3)), r"positions of shape \(\) for x"),
        (lambda: rotary(jnp.ones((1, 2, 1, 4), int)), r"x has dtype int32: give floats, for instance x.astype"),
        (lambda: alibi(0), "slopes=0: give a positive number of heads"),
        (lambda: apply(alibi(4), jnp.ones((1, 2, 3, 3))), r"slopes for 4 heads on scores \(1, 2, 3, 3\)"),
        (lambda: apply(relative_bias(jnp.ones((4, 3))), jnp.ones((1, 2, 3, 3))), "table for 3 heads on scores"),
        (lambda: relative_bias(jnp.ones((3, 2))), r"table of shape \(3, 2\) has too few buckets"),
        (lambda: relative_bias(jnp.ones((32, 2)), max_distance=8), "max_distance=8 must exceed the 8 exact"),
        (lambda: soft_cap(0.0), "cap=0.0: give a positive number"),
        (lambda: soft_cap(float("nan")), "cap=nan"),
    ],
)
def test_errors_name_the_argument_and_the_fix(call, message, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such checks before ours
    with pytest.raises(ValueError, match=message):
        call()
