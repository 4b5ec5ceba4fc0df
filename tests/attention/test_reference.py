"""Parts of a score shared by all implementations: order of operations, masked NaN, dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.attention import Causal, FunctionMask, Lengths, dot_product_attention, reference_attention
from tests.attention.oracle import (
    CASES,
    IMPLEMENTATIONS,
    TOLERANCE,
    assert_close,
    attention,
    compiled,
    draw,
    energy,
    normal,
    some,
)


def test_the_cap_comes_before_score_function_bias_and_mask():
    """A cap of 1e-3 makes all scores nearly equal, but not terms added after it."""
    query, key, value = draw(1, 9, 12, 1, 1, 3, 4)
    bias, mask = normal(1, 1, 9, 12), some(1, 1, 9, 12)
    options = {"mask": mask, "score_mod": lambda score, b, n, q, k: (score + 0.1 * (k + q)) * 2}
    distance = np.float32(0.1) * (np.arange(9)[:, None] + np.arange(12))
    weights = compiled(jax.nn.softmax)(np.where(mask, 2 * distance + bias, -np.inf))
    desired = np.einsum("bnqk,bknv->bqnv", weights, value)
    for implementation in IMPLEMENTATIONS:
        how = {"implementation": implementation, "block_size": 8, "logits_soft_cap": 1e-3}
        actual = dot_product_attention(query, key, value, bias, **options, **how)
        assert_close(actual, desired, 0.01)


# Masked numbers have no effect

Q_IDS, K_IDS = np.repeat([1, 2], [4, 6])[None], np.repeat([1, 2, 0], [5, 7, 7])[None]
HIDDEN = {  # name: (options, which queries [10] and keys [19] are hidden from everything), B = 1, T = 10, S = 19
    "lengths": ({"key_value_seq_lengths": np.array([11])}, [], range(11, 19)),
    "both lengths": (
        {"query_seq_lengths": np.array([6]), "key_value_seq_lengths": np.array([11])},
        range(6, 10),
        range(11, 19),
    ),
    "the future": ({"is_causal": True}, [], range(10, 19)),
    "window": ({"local_window_size": (3, 1)}, [], range(11, 19)),
    "segments": ({"segment_ids": (Q_IDS, K_IDS)}, [], range(12, 19)),
    "array mask": ({"mask": np.isin(np.arange(19), [2, 3, 17], invert=True)}, [], [2, 3, 17]),
    "queries of an array mask": ({"mask": np.isin(np.arange(10), [0, 9], invert=True)[:, None]}, [0, 9], []),
    "function mask": ({"mask": FunctionMask(lambda b, n, q, k: (k % 3 > 0) & (q >= 0))}, [], range(0, 19, 3)),
    "combination": ({"mask": Causal(4) | Lengths(None, 2), "local_window_size": 8}, [], range(14, 19)),
    "everything": ({"key_value_seq_lengths": np.array([0])}, range(10), range(19)),
}
NUMBERS = np.nan, np.inf, -np.inf, 1e15


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        *((name, "blockwise") for name in HIDDEN),
        *(
            (name, implementation)
            for name in ("lengths", "segments", "everything")
            for implementation in ("reference", None)
        ),
    ],
)
@pytest.mark.grid(fast=1)
def test_hidden_numbers_change_nothing(name, implementation):
    options, queries, keys = HIDDEN[name]
    how = {"implementation": implementation, "return_residual": True, "sinks": jnp.array([0.3, -1])}
    if implementation == "blockwise":
        how["block_size"] = 4
    if name in ("lengths", "the future"):  # what is not linear multiplies a cotangent of 0 with a derivative of its own
        how["logits_soft_cap"] = 2.0
    if name in ("segments", "array mask"):
        how["score_mod"] = lambda score, *indices: score + jnp.sin(score)

    def everything(*arrays):
        run = functools.partial(dot_product_attention, **options, **how)
        gradient = jax.grad(energy(run), (0, 1, 2))
        return run(*arrays), *jax.jvp(gradient, arrays, tangents)

    everything = compiled(everything)
    query, key, value = draw(1, 10, 19, 1, 2, 3, 4)
    tangents = draw(1, 10, 19, 1, 2, 3, 4, seed=1)
    queries, keys = np.array(queries, int), np.array(keys, int)
    clean = jax.device_get(everything(query, key, value))
    for number in NUMBERS:
        hidden = [np.array(x) for x in (query, key, value)]
        for x, places in zip(hidden, (queries, keys, keys), strict=True):
            x[:, places] = number
        assert_close(everything(*hidden), clean, TOLERANCE)
        assert_close(everything(query, key, hidden[2]), clean, TOLERANCE)
    for gradients in clean[1:]:
        assert not gradients[0][:, queries].any()
        assert not gradients[1][:, keys].any()
        assert not gradients[2][:, keys].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_earlier_queries_do_not_see_a_nan_of_the_future(implementation):
    """Queries before the NaN have finite results and gradients; later ones must show it."""
    run = functools.partial(dot_product_attention, is_causal=True, implementation=implementation, block_size=8)
    query, key, value = (np.array(x) for x in draw(1, 20, 20, 1, 2, 3, 4))
    key[0, 11, 0, 1], value[0, 13] = np.nan, np.inf
    out, lse = jax.device_get(run(query, key, value, return_residual=True))
    clean = run(query[:, :11], key[:, :11], value[:, :11], return_residual=True)
    assert_close([x[:, :11] for x in (out, lse)], clean, TOLERANCE)
    assert not np.isfinite(out[:, 11:]).any()
    gradient = jax.jit(jax.grad(lambda query: jnp.sin(run(query, key, value)[:, :11]).sum()))(query)
    assert np.isfinite(gradient[:, :11]).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_of_a_batch_that_sees_all_does_not_show_what_another_hides(implementation):
    query, key, value = draw(2, 9, 16, 1, 1, 3, 4)
    run = functools.partial(dot_product_attention, implementation=implementation, block_size=8)
    lengths = {"key_value_seq_lengths": np.array([16, 5])}
    clean = run(query, key, value, **lengths)
    hidden_key, hidden_value, seen_key = np.array(key), np.array(value), np.array(key)
    hidden_key[1, 5:], hidden_value[1, 5:], seen_key[0, 15] = np.nan, np.nan, np.nan
    assert_close(run(query, hidden_key, hidden_value, **lengths), clean, TOLERANCE)
    assert np.isnan(np.asarray(run(query, seen_key, value, **lengths))[0]).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_nan_of_a_hidden_bias_changes_nothing(implementation):
    query, key, value = draw(1, 9, 12, 1, 1, 3, 4)
    bias = normal(1, 1, 9, 12)
    run = compiled(
        jax.value_and_grad(
            lambda bias: dot_product_attention(
                query, key, value, bias, is_causal=True, implementation=implementation, block_size=8
            ).sum()
        )
    )
    assert_close(run(np.where(np.tri(9, 12, dtype=bool), bias, np.float32(np.nan))), run(bias), TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_nan_is_made_on_the_way(implementation):
    """`jax_debug_nans` raises if any compiled function returns NaN."""
    case = CASES["causal window, last queries see nothing"]
    arrays = case.draw(dtype="float32")
    sinks = {"sinks": jnp.zeros(2)}
    bias = {"bias": jnp.full((1, 1, 20, 1), -jnp.inf)}
    with jax.debug_nans(True):
        for more in ({}, sinks | bias):
            how = {"implementation": implementation, "block_size": 8, "return_residual": True}
            run = functools.partial(dot_product_attention, **case.options(), **how, **more)
            gradient = jax.jit(jax.grad(energy(run), (0, 1, 2)))
            order = arrays["query"], arrays["key"], arrays["value"]
            jax.block_until_ready(jax.jvp(gradient, order, order))


# Dropout


@pytest.fixture(scope="module")
def multiples():
    """The factors [B, N, T, S] of the weights, recovered with the unit matrix as values."""
    query, key, _ = draw(2, 64, 64, 1, 3, 4, 4)
    value = np.broadcast_to(np.eye(64, dtype="float32")[:, None], (2, 64, 1, 64))
    weights = dot_product_attention(query, key, value)
    dropped = dot_product_attention(query, key, value, dropout_rate=0.3, dropout_key=jax.random.key(5))
    return np.asarray(dropped / weights).swapaxes(1, 2)


def test_dropout_keeps_its_share_and_scales_it(multiples):
    np.testing.assert_allclose(multiples[multiples > 0.5], 1 / 0.7, rtol=1e-5)
    np.testing.assert_array_equal(multiples[multiples < 0.5], 0)
    share = (multiples > 0).mean()
    assert abs(share - 0.7) < 5 * np.sqrt(0.21 / multiples.size)
    for axis in range(4):  # and along each axis: the share of each row is binomial
        others = tuple(n for n in range(4) if n != axis)
        shares = (multiples > 0).mean(others)
        assert np.abs(shares - 0.7).max() < 5 * np.sqrt(0.21 * len(shares) / multiples.size)


def test_dropout_is_independent_across_batches_heads_queries_and_keys(multiples):
    keep = (multiples > 0) - 0.7
    for axis in range(4):
        for shift in (1, 2, 8, 32):
            if shift < keep.shape[axis]:
                other = np.roll(keep, shift, axis)
                correlation = (keep * other).mean() / 0.21
                assert abs(correlation) < 5 / np.sqrt(keep.size), (axis, shift)
    assert abs((keep * keep.swapaxes(2, 3)).mean() / 0.21) < 5 / np.sqrt(keep.size / 2)  # (q, k) and (k, q)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_dropout_is_the_same_for_every_block_size_and_in_gradients():
    B, T, S, N = 2, 12, 20, 4
    arrays = draw(B, T, S, 2, 2, 4, 3, dtype="float64")
    drop = {"dropout_rate": 0.3, "dropout_key": jax.random.key(5), "is_causal": True, "return_residual": True}
    identity = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, 2, S))
    weights = [reference_attention(*arrays[:2], identity, **(drop | {"dropout_rate": rate}))[0] for rate in (0.0, 0.3)]
    multiples = jnp.where(weights[0] > 0, weights[1] / weights[0], 0).swapaxes(1, 2)
    visible = np.broadcast_to(np.tri(T, S, dtype=bool), (B, N, T, S))

    def desired(*arrays):
        return attention(*arrays, visible=visible, dropout_mask=multiples)

    def both(run):
        gradient = jax.grad(energy(run), (0, 1, 2))
        return compiled(lambda *arrays: (run(*arrays), *jax.jvp(gradient, arrays, arrays)))(*arrays)

    expected = both(desired)
    for how in ({"implementation": "reference"}, *({"block_size": size} for size in ((8, 8), (16, 8), (64, 64)))):
        how = {"implementation": "blockwise"} | how
        assert_close(both(functools.partial(dot_product_attention, **drop, **how)), expected)


def test_dropout_of_rate_0_is_none_and_other_keys_drop_others():
    arrays = draw(1, 12, 12, 1, 1, 4, 4)
    for implementation in IMPLEMENTATIONS:
        run = functools.partial(dot_product_attention, *arrays, implementation=implementation)
        keys = jax.random.split(jax.random.key(0))
        assert_close(run(dropout_rate=0.0, dropout_key=keys[0]), run(), 0)
        several = np.asarray(jax.vmap(lambda key, run=run: run(dropout_rate=0.5, dropout_key=key))(keys))
        assert np.abs(several[0] - several[1]).min(axis=(0, 2, 3)).max() > 1e-3
        assert_close(several, np.stack([run(dropout_rate=0.5, dropout_key=key) for key in keys]), TOLERANCE)
