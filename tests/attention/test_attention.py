"""Attention forward: against an oracle and `jax.nn`, hidden numbers, dropout, blocks and what is refused."""

import functools
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from jaxai.attention import (
    Causal,
    FunctionMask,
    Lengths,
    Segments,
    SlidingWindow,
    alibi,
    blockwise,
    dot_product_attention,
    reference_attention,
)
from jaxai.attention.attend import tall_visits
from jaxai.attention.blockwise import Problem
from jaxai.attention.reference import Call, reference
from tests.attention.oracle import CASES, SETTINGS, Case, assert_close, attention, compiled

IMPLEMENTATIONS = ["reference", "blockwise"]
SMALL = ["reference", "small blocks"]
TOLERANCE = 3e-6  # float32: sums of some 20 terms of size 1, in another order


@pytest.fixture
def unchecked(monkeypatch):
    """Without the type checks of the tests, which speak before the function's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(*sizes, dtype="float32", seed=0):
    """query, key, value of B, T, S, K, N / K, H, V."""
    arrays = Case(sizes).draw(seed, dtype)
    return arrays["query"], arrays["key"], arrays["value"]


# Numbers


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
def test_equals_the_oracle(name):
    case = CASES[name]
    settings = dict(SETTINGS) if name in ("everything", "lengths") else {x: SETTINGS[x] for x in SMALL}
    calls = {setting: functools.partial(case.call, **how) for setting, how in settings.items()}
    calls["oracle"] = case.expected
    results = compiled(lambda arrays: {name: f(arrays) for name, f in calls.items()})(case.draw())
    desired = results.pop("oracle")
    for setting, result in results.items():
        assert_close(result, desired)
        assert {x.dtype for x in result} == {np.dtype("float64")}, setting
        hidden = ~case.visible.any(-1).swapaxes(1, 2)
        assert not np.asarray(result[0])[hidden].any(), setting
        if "sinks" not in case.extra:
            assert np.isneginf(np.asarray(result[1])[hidden]).all(), setting


@pytest.mark.parametrize("block_size", [1, (1, 100), (100, 3), (8, 16), 19])
@pytest.mark.usefixtures("x64")
def test_any_block_size(block_size):
    case = CASES["everything"]
    arrays = case.draw()
    actual = compiled(functools.partial(case.call, implementation="blockwise", block_size=block_size))(arrays)
    assert_close(actual, case.expected(arrays))


@pytest.mark.parametrize("name", ["everything", "lengths", "bias"])
def test_float32(name):
    case = CASES[name]
    with jax.enable_x64(True):
        arrays = {key: x.astype("float32") for key, x in case.draw().items()}
        desired = jax.device_get(case.expected({key: x.astype("float64") for key, x in arrays.items()}))
    for setting in SMALL:
        actual = compiled(functools.partial(case.call, **SETTINGS[setting]))(arrays)
        assert_close(actual, desired, TOLERANCE)
        assert {x.dtype for x in actual} == {np.dtype("float32")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_floats_err_no_more_than_twice_the_reference(dtype):
    case = Case((2, 40, 40, 2, 2, 16, 16), lambda: {"is_causal": True}, lambda b, n, q, k: k <= q)
    with jax.enable_x64(True):
        arrays = {name: x.astype(dtype) for name, x in case.draw().items()}
        desired = jax.device_get(case.expected({name: x.astype("float64") for name, x in arrays.items()}))
    errors = {}
    for setting in SMALL:
        out, lse = compiled(functools.partial(case.call, **SETTINGS[setting]))(arrays)
        assert (out.dtype, lse.dtype) == (dtype, "float32")
        errors[setting] = [
            np.linalg.norm(np.asarray(a, "float64") - b) for a, b in zip((out, lse), desired, strict=True)
        ]
        np.testing.assert_allclose(lse, desired[1], atol=1e-5, rtol=0)  # sums in float32
    assert errors["small blocks"][0] <= 2 * errors["reference"][0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_a_batch_axis(implementation):
    case = CASES["bias"]
    arrays = {name: x[1] for name, x in case.draw(dtype="float32").items()}
    run = functools.partial(dot_product_attention, implementation=implementation, block_size=4, return_residual=True)
    options = {"mask": RANDOM[:9, :17], "key_value_seq_lengths": jnp.array([16]), "sinks": jnp.zeros(2)}
    options["segment_ids"] = jnp.zeros(9, int), jnp.zeros((1, 17), int)
    alone = run(**arrays, **options)
    batched = run(**{name: x[None] for name, x in arrays.items()}, **options)
    assert [x.shape for x in alone] == [(9, 2, 4), (9, 2)]
    assert_close(alone, [x[0] for x in batched], 0)


RANDOM = np.random.default_rng(3).random((12, 17)) < 0.7


def test_default_takes_blocks_for_many_scores_and_equals_the_reference():
    query, key, value = draw(1, 520, 520, 1, 1, 4, 4)
    jaxpr = str(jax.make_jaxpr(dot_product_attention)(query, key, value))
    assert "attend[" in jaxpr
    assert "attend[" not in str(jax.make_jaxpr(dot_product_attention)(query[:, :9], key, value))
    for mask in (None, Causal() & SlidingWindow(300, None)):
        actual = dot_product_attention(query, key, value, mask=mask, return_residual=True)
        desired = reference_attention(query, key, value, mask=mask, return_residual=True)
        assert_close(actual, desired, TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.usefixtures("x64")
def test_huge_scores_and_cancelling_ones(implementation):
    """Scores of +-1000 overflow exp; the softmax must not."""
    query, key, value = draw(1, 12, 20, 1, 1, 2, 2, dtype="float64")
    scores = jnp.einsum("bqnh,bknh->bnqk", 1000 * query, key)
    desired = jax.nn.softmax(scores), jax.nn.logsumexp(scores, -1).swapaxes(1, 2)
    desired = jnp.einsum("bnqk,bknv->bqnv", desired[0], value), desired[1]
    run = functools.partial(dot_product_attention, scale=1000.0, implementation=implementation, block_size=8)
    assert_close(run(query, key, value, return_residual=True), desired)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("x64", [False, True])
def test_score_functions_get_int32_indices_of_rank_4(implementation, x64):
    seen = set()

    def score_mod(score, b, n, q, k):
        seen.add((score.ndim, *((x.dtype.name, x.ndim) for x in (b, n, q, k))))
        assert (b.shape[0], n.shape[1], q.shape[2], k.shape[3]) == score.shape
        return score

    def mask(b, n, q, k):
        seen.add((4, *((x.dtype.name, x.ndim) for x in (b, n, q, k))))
        return q >= k

    with jax.enable_x64(x64):
        query, key, value = draw(2, 12, 17, 1, 2, 4, 4)
        dot_product_attention(
            *(query, key, value),
            mask=FunctionMask(mask),
            score_mod=score_mod,
            implementation=implementation,
            block_size=8,
        )
    assert seen == {(4, *[("int32", 4)] * 4)}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_score_functions_that_are_pytrees(implementation):
    arrays = draw(1, 12, 12, 2, 1, 4, 4)
    run = functools.partial(dot_product_attention, is_causal=True, implementation=implementation, block_size=8)
    slopes = jnp.array([0.3, 0.1])
    distance = jnp.abs(jnp.arange(12)[:, None] - jnp.arange(12)[None])
    desired = run(*arrays, bias=-slopes[:, None, None] * distance[None])
    actual = jax.jit(lambda mod: run(*arrays, score_mod=mod))(alibi(slopes))
    assert_close(actual, desired, TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_score_function_that_changes_is_not_remembered(implementation):
    """Whoever does not jit does not expect a cache, nor the tracers of an earlier call in it."""
    query, key, value = draw(1, 9, 9, 1, 1, 4, 4)
    run = functools.partial(dot_product_attention, query, key, value, implementation=implementation)
    factor = [jnp.array(0.0)]

    def score_mod(score, *indices):
        return score * factor[0]

    def loss(x):
        factor[0] = x
        return (run(score_mod=score_mod) ** 2).sum()

    first = run(score_mod=score_mod)
    factor[0] = jnp.array(1.0)
    assert_close(run(score_mod=score_mod), run(), TOLERANCE)
    assert not np.allclose(first, run())
    gradients = [jax.grad(loss)(x) for x in (1.0, 2.0)]
    assert_close(gradients, [jax.grad(lambda x: (run(scale=x * 0.5) ** 2).sum())(x) for x in (1.0, 2.0)], 1e-4)


# The interface of jax.nn


def test_arguments_begin_as_those_of_jax_nn():
    ours, theirs = (inspect.signature(f).parameters for f in (dot_product_attention, jax.nn.dot_product_attention))
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind), name


def normal(*shape):
    return np.random.default_rng(11).standard_normal(shape).astype("float32")


def some(*shape):
    """Bools with the first key always visible: where a query sees nothing, jax.nn gives the mean of the values."""
    return (np.random.default_rng(11).random(shape) < 0.6) | (np.arange(shape[-1]) == 0)


OPTIONS = {  # of jax.nn; B, T, S, N = 2, 9, 12, 4
    "none": {},
    "bias": {"bias": normal(2, 4, 9, 12)},
    "bias of heads": {"bias": normal(1, 4, 1, 1)},
    "bias of keys": {"bias": normal(2, 1, 1, 12)},
    "bias of one batch": {"bias": normal(4, 9, 12)},
    "mask": {"mask": some(2, 4, 9, 12)},
    "mask of queries and keys": {"mask": some(9, 12)},
    "mask of heads": {"mask": some(1, 4, 1, 12)},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "lengths": {"query_seq_lengths": np.array([9, 4], np.int32), "key_value_seq_lengths": np.array([5, 12], np.int32)},
    "key lengths": {"key_value_seq_lengths": np.array([5, 12], np.int32)},
    "window": {"local_window_size": 4},
    "two-sided window": {"local_window_size": (2, 5)},
    "all": {
        "bias": normal(2, 1, 9, 12),
        "mask": some(2, 1, 9, 12),
        "is_causal": True,
        "scale": 2,
        "key_value_seq_lengths": np.array([5, 12], np.int32),
        "local_window_size": (11, 0),
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_jax_nn_option_by_option(name):
    options = OPTIONS[name]
    batches = {"batched": draw(2, 9, 12, 2, 2, 4, 4)}
    if name in ("none", "bias of one batch", "mask of queries and keys", "causal", "window"):
        batches["unbatched"] = tuple(x[0] for x in batches["batched"])
    calls = {"jax.nn": functools.partial(jax.nn.dot_product_attention, implementation="xla")}
    for implementation in IMPLEMENTATIONS:
        calls[implementation] = functools.partial(dot_product_attention, implementation=implementation, block_size=4)
    for arrays in batches.values():
        run = compiled(lambda *x: {key: f(*x, **options, return_residual=True) for key, f in calls.items()})
        results = run(*arrays)
        out, lse = results.pop("jax.nn")
        real = np.arange(9)[None] < np.asarray(options.get("query_seq_lengths", [9]))[:, None]
        real = np.broadcast_to(real if out.ndim == 4 else real[0], out.shape[:-2])
        for actual in results.values():
            assert [(x.shape, x.dtype) for x in actual] == [(x.shape, x.dtype) for x in (out, lse)]
            assert_close([x[real] for x in actual], [out[real], lse[real]], TOLERANCE)


def test_numpy_arrays_and_positional_arguments():
    arrays = [np.asarray(x) for x in draw(2, 9, 12, 2, 2, 4, 4)]
    bias, mask = np.asarray(normal(2, 4, 9, 12)), np.asarray(some(2, 4, 9, 12))
    desired = jax.nn.dot_product_attention(*arrays, bias, mask)
    assert_close(dot_product_attention(*arrays, bias, mask), desired, TOLERANCE)
    assert isinstance(dot_product_attention(*arrays), jax.Array)


class Attending(nn.Module):
    """A program written against jax.nn."""

    implementation: str | None = None

    @nn.compact
    def __call__(self, x):
        query, key, value = (nn.DenseGeneral((2, 4))(x) for _ in range(3))
        x = jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation=self.implementation)
        return nn.DenseGeneral(5, axis=(-2, -1))(x)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_a_linen_program_goes_on_with_ours_in_place_of_jax_nn(monkeypatch, implementation):
    module, x = Attending(implementation), normal(2, 7, 5)
    variables = module.init(jax.random.key(0), x)

    def loss(variables):
        return jnp.sin(module.apply(variables, x)).sum()

    desired = jax.value_and_grad(loss)(variables)
    calls = []

    def ours(*args, **kwargs):
        calls.append(kwargs)
        return dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", ours)
    assert_close(jax.value_and_grad(loss)(variables), desired, TOLERANCE)
    assert len(calls) == 1


# What is hidden stays hidden

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


def energy(run):
    """A function of the output and of the log-sum-exp, smooth also where that is -inf."""

    def value(*arrays):
        out, lse = run(*arrays)
        return jnp.sin(out).sum() + jnp.exp(0.3 * lse).sum()

    return value


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
    clean = everything(query, key, value)
    for number in NUMBERS:
        hidden = query.at[:, queries].set(number), key.at[:, keys].set(number), value.at[:, keys].set(number)
        assert_close(everything(*hidden), clean, TOLERANCE)
        only_values = query, key, value.at[:, keys].set(number)
        assert_close(everything(*only_values), clean, TOLERANCE)
    for gradients in clean[1:]:
        assert not gradients[0][:, queries].any()
        assert not gradients[1][:, keys].any()
        assert not gradients[2][:, keys].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_earlier_queries_do_not_see_a_nan_of_the_future(implementation):
    """Queries before the NaN, their log-sum-exp and their gradients; the later ones must show it."""
    run = functools.partial(dot_product_attention, is_causal=True, implementation=implementation, block_size=8)
    query, key, value = draw(1, 20, 20, 1, 2, 3, 4)
    key, value = key.at[0, 11, 0, 1].set(jnp.nan), value.at[0, 13].set(jnp.inf)
    out, lse = run(query, key, value, return_residual=True)
    clean = run(query[:, :11], key[:, :11], value[:, :11], return_residual=True)
    assert_close([x[:, :11] for x in (out, lse)], clean, TOLERANCE)
    assert not np.isfinite(out[:, 11:]).any()
    gradient = jax.grad(lambda query: jnp.sin(run(query, key, value)[:, :11]).sum())(query)
    assert np.isfinite(gradient[:, :11]).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_of_a_batch_that_sees_all_does_not_show_what_another_hides(implementation):
    query, key, value = draw(2, 9, 16, 1, 1, 3, 4)
    run = functools.partial(dot_product_attention, implementation=implementation, block_size=8)
    lengths = {"key_value_seq_lengths": jnp.array([16, 5])}
    clean = run(query, key, value, **lengths)
    hidden = run(query, key.at[1, 5:].set(jnp.nan), value.at[1, 5:].set(jnp.nan), **lengths)
    assert_close(hidden, clean, TOLERANCE)
    assert np.isnan(run(query, key.at[0, 15].set(jnp.nan), value, **lengths)[0]).all()


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
    assert_close(run(jnp.where(np.tri(9, 12, dtype=bool)[None, None], bias, jnp.nan)), run(bias), TOLERANCE)


def test_the_cap_comes_before_score_function_bias_and_mask():
    """A cap of 1e-3 makes all scores equal; what is added after it stays."""
    query, key, value = draw(1, 9, 12, 1, 1, 3, 4)
    bias, mask = normal(1, 1, 9, 12), some(1, 1, 9, 12)
    options = {"mask": mask, "score_mod": lambda score, b, n, q, k: (score + 0.1 * (k + q)) * 2}
    distance = 0.1 * (jnp.arange(9)[:, None] + jnp.arange(12)[None])
    weights = jax.nn.softmax(jnp.where(mask, 2 * distance[None, None] + bias, -jnp.inf))
    for implementation in IMPLEMENTATIONS:
        how = {"implementation": implementation, "block_size": 8, "logits_soft_cap": 1e-3}
        actual = dot_product_attention(query, key, value, bias, **options, **how)
        assert_close(actual, jnp.einsum("bnqk,bknv->bqnv", weights, value), 0.01)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_nan_is_made_on_the_way(implementation):
    """`jax_debug_nans` looks at the result of every compiled function, and runs it again step by step if one is NaN."""
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
def kept():
    """What dropout multiplies the weights with, [B, N, T, S], seen through values that are the unit matrix."""
    query, key, _ = draw(2, 64, 64, 1, 3, 4, 4)
    value = jnp.broadcast_to(jnp.eye(64)[None, :, None], (2, 64, 1, 64))
    weights = dot_product_attention(query, key, value)
    dropped = dot_product_attention(query, key, value, dropout_rate=0.3, dropout_key=jax.random.key(5))
    return np.asarray(dropped / weights).swapaxes(1, 2)


def test_dropout_keeps_its_share_and_scales_it(kept):
    np.testing.assert_allclose(kept[kept > 0.5], 1 / 0.7, rtol=1e-5)
    np.testing.assert_array_equal(kept[kept < 0.5], 0)
    share = (kept > 0).mean()
    assert abs(share - 0.7) < 5 * np.sqrt(0.21 / kept.size)
    for axis in range(4):  # and along each axis: the share of each row is binomial
        others = tuple(n for n in range(4) if n != axis)
        shares = (kept > 0).mean(others)
        assert np.abs(shares - 0.7).max() < 5 * np.sqrt(0.21 * len(shares) / kept.size)


def test_dropout_is_independent_across_batches_heads_queries_and_keys(kept):
    keep = (kept > 0) - 0.7
    for axis in range(4):
        for shift in (1, 2, 8, 32):
            if shift < keep.shape[axis]:
                other = np.roll(keep, shift, axis)
                correlation = (keep * other).mean() / 0.21
                assert abs(correlation) < 5 / np.sqrt(keep.size), (axis, shift)
    assert abs((keep * keep.swapaxes(2, 3)).mean() / 0.21) < 5 / np.sqrt(keep.size / 2)  # (q, k) and (k, q)


@pytest.mark.usefixtures("x64")
def test_dropout_is_the_same_for_every_block_size_and_in_gradients():
    B, T, S, N = 2, 12, 20, 4
    arrays = draw(B, T, S, 2, 2, 4, 3, dtype="float64")
    drop = {"dropout_rate": 0.3, "dropout_key": jax.random.key(5), "is_causal": True, "return_residual": True}
    identity = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, 2, S))
    weights = [reference_attention(*arrays[:2], identity, **(drop | {"dropout_rate": rate}))[0] for rate in (0.0, 0.3)]
    multiples = jnp.where(weights[0] > 0, weights[1] / weights[0], 0).swapaxes(1, 2)
    visible = np.broadcast_to(np.tri(T, S, dtype=bool), (B, N, T, S))

    def desired(*arrays):
        return attention(*arrays, visible=visible, kept=multiples)

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
        several = jax.vmap(lambda key, run=run: run(dropout_rate=0.5, dropout_key=key))(keys)
        assert np.abs(several[0] - several[1]).min(axis=(0, 2, 3)).max() > 1e-3
        assert_close(several, jnp.stack([run(dropout_rate=0.5, dropout_key=key) for key in keys]), TOLERANCE)


# Blocks


MASKS = {
    "causal": Causal(),
    "window": SlidingWindow(5, 3),
    "segments": Segments(np.repeat([0, 1, 2], [9, 8, 13])[None], np.repeat([0, 1, 2], [16, 2, 20])[None]),
    "lengths": Lengths(None, 17),
    "none": None,
}


@pytest.mark.parametrize("name", MASKS)
def test_only_blocks_with_something_to_see_are_computed(name):
    """Counted while it runs, so for segments too, whose schedule is known then and no sooner."""
    mask = MASKS[name]
    query, key, value = draw(1, 30, 38, 1, 1, 4, 4)
    problem = Problem(Call(query, key, value, mask=mask), 8, 8)
    rows, cols = problem.grid.block_rows, problem.grid.block_cols
    visible = np.ones((30, 38), bool) if mask is None else np.asarray(mask.materialize(30, 38))[0, 0]
    blocks = [
        [visible[i : i + rows, j : j + cols] for j in range(0, problem.grid.cols, cols)]
        for i in range(0, problem.grid.rows, rows)
    ]
    possible = np.array([[block.any() for block in row] for row in blocks])
    # a block that is filled up, along the queries or along the keys, is masked, so it isn't certain
    certain = np.array([[block.all() and block.shape == (rows, cols) for block in row] for row in blocks])
    np.testing.assert_array_equal(problem.possible, possible)
    np.testing.assert_array_equal(problem.certain, certain)

    starts = []

    def score_mod(score, b, n, q, k):
        def visit(q0, k0):  # several blocks of queries may be visited at once
            starts.extend((int(q0) + row, int(k0)) for row in range(0, q.shape[2], rows))

        jax.debug.callback(visit, q[0, 0, 0, 0], k[0, 0, 0, 0])
        return score

    run = functools.partial(dot_product_attention, query, key, value, implementation="blockwise", block_size=8)
    jax.block_until_ready(run(mask=mask, score_mod=score_mod))
    jax.effects_barrier()
    assert sorted(starts) == [(i * rows, j * cols) for i, j in np.argwhere(possible)]


def loss_and_gradient(run, **options):
    """Of three arrays; ``options`` are those of a Call."""
    value = energy(lambda *arrays: run(Call(*arrays, **options)))
    return compiled(jax.value_and_grad(value, (0, 1, 2)))


@pytest.fixture
def blocks_of_16(monkeypatch):
    """Blocks of 16 by default, of 8 in the forward pass: T = 50 is then like T = 1,600."""
    monkeypatch.setattr(blockwise, "SIZES", {16: 1.0})
    monkeypatch.setattr(blockwise, "MIN_KEYS", 8)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("T", [1, 7, 17, 24, 33, 50, 100])
def test_the_forward_pass_takes_smaller_blocks_than_the_derivatives(mask, T, blocks_of_16):
    """Some of them lie behind the end; a single block of few queries may have an odd number of them."""
    arrays = draw(1, T, 38, 1, 2, 4, 4)
    if isinstance(mask, Segments):
        mask = Segments(np.arange(T)[None] // 9, np.arange(38)[None] // 9)
    problem = Problem(Call(*arrays, mask=mask), 16, 16)
    grid, forward = problem.quarters()
    assert (grid.rows, grid.cols, grid.block_cols) == (problem.grid.rows, problem.grid.cols, 8)
    assert grid.rows % grid.block_rows == 0
    assert forward.tables[0].shape == grid.shape
    results = [loss_and_gradient(run, mask=mask)(*arrays) for run in (blockwise.blockwise, reference)]
    assert_close(*results, 1e-5)


def test_smaller_blocks_with_everything_else(blocks_of_16):
    """Sinks, hidden rows, dropout, bias, small floats, a batch by vmap, devices by shard_map."""
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
    """Arrays that are known while tracing are no reason to keep to one size of block."""
    table = np.linspace(0, 1, 64, dtype=np.float32)
    arrays = draw(1, 64, 64, 1, 1, 4, 4)
    known = Call(*arrays, score_mod=jax.tree_util.Partial(lambda score, b, n, q, k: score + jnp.asarray(table)[k]))
    assert Problem(known, 16, 16).f.any_size

    def traced(table):
        call = Call(*arrays, score_mod=jax.tree_util.Partial(lambda score, b, n, q, k: score + table[k]))
        assert not Problem(call, 16, 16).f.any_size
        return blockwise.blockwise(call, (16, 16))[0]

    assert_close(jax.jit(traced)(jnp.asarray(table)), blockwise.blockwise(known, (16, 16))[0], TOLERANCE)


def test_block_size_by_the_size_that_blocks_really_have():
    """T = 640 makes blocks of 320 or, at a higher cost, of 216."""
    arrays = draw(1, 640, 640, 1, 1, 4, 4)
    assert blockwise.block_sizes(Call(*arrays)) == (512, 512)


@given(st.integers(1, 17), st.integers(1, 6), st.integers(0, 3), st.integers(0, 99))
def test_every_block_is_visited_once_by_itself_or_among_others(rows, cols, power, seed):
    rng = np.random.default_rng(seed)
    possible = rng.random((rows, cols)) < 0.9
    certain = possible & (rng.random((rows, cols)) < 0.8)
    group, classes = tall_visits(possible, certain, 2**power)
    assert group <= 2**power
    assert rows % group == 0
    visits = np.zeros((rows, cols), int)
    for masked, size, count, inner_rows, columns in classes:
        for i, n in enumerate(count):
            for row, col in zip(inner_rows[i, :n], columns[i, :n], strict=True):
                blocks = slice(i * group + row * size, i * group + (row + 1) * size), col
                visits[blocks] += 1
                assert (possible & ~certain if masked else certain)[blocks].all()
    np.testing.assert_array_equal(visits, possible)


def test_a_mask_is_evaluated_only_in_blocks_with_something_to_hide():
    """Of 3 x 3 blocks a causal mask hides parts of 3; its function runs once a block for the schedule, too."""
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
    """So that nothing is decided at run time, and a full attention has no masked loop at all."""
    query, key, value = draw(1, 32, 40, 1, 1, 4, 4)
    run = functools.partial(dot_product_attention, implementation="blockwise", block_size=8, mask=MASKS[name])
    visible = np.ones((32, 40), bool) if MASKS[name] is None else np.asarray(MASKS[name].materialize(32, 40))[0, 0]
    count = visible.reshape(4, 8, 5, 8).any((1, 3)).sum()
    assert f"schedule=Schedule({count} of 20 blocks)" in str(jax.make_jaxpr(run)(query, key, value))


# What is refused

QUERY, KEY, VALUE = (2, 9, 4, 8), (2, 12, 2, 8), (2, 12, 2, 6)


def call(query=QUERY, key=KEY, value=VALUE, **options):
    query, key, value = (jnp.zeros(x) if isinstance(x, tuple) else x for x in (query, key, value))
    return dot_product_attention(query, key, value, **options)


WRONG = {  # name: (options, what the message says)
    "query of rank 2": ({"query": (9, 8)}, r"query has shape \(9, 8\)"),
    "key of rank 5": ({"key": (1, 2, 12, 2, 8)}, r"key has shape \(1, 2, 12, 2, 8\)"),
    "integers": ({"value": np.zeros(VALUE, int)}, "value has dtype int.*give floats"),
    "complex numbers": ({"query": np.zeros(QUERY, np.complex64)}, "query has dtype complex.*give floats"),
    "batched and not": ({"query": (9, 4, 8)}, "3, 4 and 4 axes"),
    "dtypes": ({"key": np.zeros(KEY, np.float16)}, "float32, float16 and float32: cast"),
    "batches": ({"query": (3, 9, 4, 8)}, "query has batch size 3 and key 2"),
    "head sizes": ({"query": (2, 9, 4, 7)}, "query has head size 7 and key 8"),
    "key and value": ({"value": (2, 11, 2, 8)}, r"key has shape \(2, 12, 2, 8\) and value \(2, 11, 2, 8\)"),
    "heads": ({"query": (2, 9, 3, 8)}, r"query has 3 heads and key 2.*\(2, 9, 3, 8\) and \(2, 12, 2, 8\).*multiple"),
    "no queries": ({"query": (2, 0, 4, 8)}, r"\(2, 0, 4, 8\).*no axis may be empty"),
    "no keys": ({"key": (2, 0, 2, 8), "value": (2, 0, 2, 8)}, r"\(2, 0, 2, 8\).*no axis may be empty"),
    "no key heads": ({"key": (2, 12, 0, 8), "value": (2, 12, 0, 8)}, r"\(2, 12, 0, 8\).*no axis may be empty"),
    "BNTH": ({"query": (2, 4, 9, 8), "key": (2, 4, 12, 8), "value": (2, 4, 12, 8)}, r"swap axes 1 and 2"),
    "BNTH by the bias": (
        {"query": (2, 4, 9, 8), "key": (2, 4, 9, 8), "value": (2, 4, 9, 8), "bias": jnp.zeros((2, 4, 9, 9))},
        r"bias has shape \(2, 4, 9, 9\).*swap axes 1 and 2",
    ),
    "bias": ({"bias": np.zeros((2, 4, 9, 11), "float32")}, r"bias has shape \(2, 4, 9, 11\).*\[2, 4, 9, 12\]"),
    "bias of rank 5": ({"bias": np.zeros((1, 2, 4, 9, 12), "float32")}, r"bias has shape \(1, 2, 4, 9, 12\)"),
    "bias of bools": ({"bias": np.zeros((9, 12), bool)}, "bias has dtype bool"),
    "bias of key heads": ({"bias": np.zeros((2, 2, 9, 12), "float32")}, r"bias has shape \(2, 2, 9, 12\)"),
    "mask": ({"mask": np.zeros((2, 4, 12, 9), bool)}, r"mask has shape \(2, 4, 12, 9\).*\[2, 4, 9, 12\]"),
    "mask of floats": ({"mask": np.zeros((9, 12), "float32")}, "mask has dtype float32.*bool"),
    "mask object": (
        {"mask": Segments(np.zeros(9, int), np.zeros(11, int))},
        r"mask has.*\[1, 1, 9, 11\].*\[2, 4, 9, 12\]",
    ),
    "mask object of lengths": ({"mask": Lengths(None, np.zeros(3, int))}, r"mask has.*\[3, 1, 1, 12\]"),
    "mask object of an array": ({"mask": Causal() & np.zeros((3, 9, 12), bool)}, r"mask has.*3, 9, 12"),
    "lengths": ({"query_seq_lengths": np.zeros(3, int)}, r"query_seq_lengths has shape \(3,\).*\[2\]"),
    "lengths of floats": ({"key_value_seq_lengths": np.zeros(2)}, "key_value_seq_lengths has.*float"),
    "segments": (
        {"segment_ids": (np.zeros((2, 9), int), np.zeros((2, 9), int))},
        r"segment_ids has shape \(2, 9\).*\[2, 12\]",
    ),
    "segments for both": ({"segment_ids": np.zeros((2, 9), int)}, r"segment_ids has shape \(2, 9\).*\[2, 12\]"),
    "segments of floats": ({"segment_ids": (np.zeros((2, 9)), np.zeros((2, 12)))}, "segment_ids has.*float"),
    "three segments": ({"segment_ids": (1, 2, 3)}, "segment_ids has 3 parts"),
    "sinks": ({"sinks": np.zeros(2, "float32")}, r"sinks has shape \(2,\).*\[4\]"),
    "sinks of integers": ({"sinks": np.zeros(4, int)}, "sinks has.*int"),
    "score_mod": ({"score_mod": 3}, "score_mod=3 must be a function"),
    "score_mod of another shape": (
        {"score_mod": lambda score, *indices: score.sum(0)},
        r"score_mod changed the shape.*\(2, 4, 9, 12\) to \(4, 9, 12\)",
    ),
    "score_mod of another shape, in blocks": (
        {"score_mod": lambda score, *indices: score[0], "implementation": "blockwise"},
        r"score_mod changed the shape.*\(2, 4, 9, 12\) to \(4, 9, 12\)",
    ),
    "cap": ({"logits_soft_cap": 0.0}, "logits_soft_cap=0.0 must be positive"),
    "no key": ({"dropout_rate": 0.5, "dropout_key": 0}, "dropout_key=0 is no key"),
    "dropout of many": ({"dropout_rate": np.ones(2)}, "dropout_rate=.* must be a number that is known"),
    "scale of features": ({"scale": np.ones(8, "float32")}, r"scale has shape \(8,\)"),
    "scale of the query": ({"scale": np.ones((2, 9, 4, 8), "float32")}, r"scale has shape \(2, 9, 4, 8\)"),
    "dropout without key": ({"dropout_rate": 0.1}, "dropout_rate=0.1 needs dropout_key"),
    "dropout of all": ({"dropout_rate": 1.0, "dropout_key": 0}, "dropout_rate=1.0 must be.*less than 1"),
    "negative dropout": ({"dropout_rate": -0.1}, "dropout_rate=-0.1 must be at least 0"),
    "implementation": ({"implementation": "flash"}, "implementation='flash' is not known.*'blockwise'"),
    "block of nothing": ({"block_size": 0}, "block_size=0 must be a positive int"),
    "block of one part": ({"block_size": (4,)}, r"block_size=\(4,\) must be"),
    "block of three parts": ({"block_size": (4, 4, 4)}, r"block_size=\(4, 4, 4\) must be"),
    "block of a float": ({"block_size": 4.0}, "block_size=4.0 must be"),
    "window of three parts": ({"local_window_size": (1, 2, 3)}, r"local_window_size=\(1, 2, 3\)"),
    "negative window": ({"local_window_size": -1}, "local_window_size=-1"),
    "window of a float": ({"local_window_size": 4.0}, "local_window_size=4.0"),
}


@pytest.mark.usefixtures("unchecked")
def test_numbers_must_be_known_while_tracing():
    arrays = draw(1, 3, 3, 1, 1, 2, 2)
    for name in ("logits_soft_cap", "dropout_rate"):
        with pytest.raises(ValueError, match=f"{name}=.*known while tracing"):
            jax.jit(lambda x, name=name: dot_product_attention(*arrays, **{name: x}))(0.5)
    known = dot_product_attention(*arrays, logits_soft_cap=jnp.float32(0.5))
    assert_close(known, dot_product_attention(*arrays, logits_soft_cap=0.5), 0)


def test_a_list_of_ids_is_an_array_and_a_tuple_a_pair():
    arrays = draw(2, 3, 3, 1, 1, 2, 2)
    ids = [[0, 0, 1], [0, 1, 1]]
    wanted = dot_product_attention(*arrays, segment_ids=jnp.array(ids))
    assert_close(dot_product_attention(*arrays, segment_ids=ids), wanted, 0)
    assert_close(dot_product_attention(*arrays, segment_ids=(jnp.array(ids), jnp.array(ids))), wanted, 0)


def test_an_array_scale_is_as_exact_as_a_number():
    query, key, value = (x.astype("bfloat16") for x in draw(1, 20, 20, 1, 1, 96, 4))
    for implementation in IMPLEMENTATIONS:
        run = functools.partial(dot_product_attention, query, key, value, implementation=implementation)
        results = [run(scale=scale, return_residual=True) for scale in (96**-0.5, jnp.float32(96**-0.5))]
        assert_close(*(jax.tree.map(lambda x: x.astype("float32"), x) for x in results), 0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", WRONG)
def test_errors_name_the_argument_and_its_value(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        call(**options)
    assert "\n" not in str(error.value)


REFUSED = {  # name: (implementation, options, what the message says)
    "cudnn on a CPU": ("cudnn", {}, "cuDNN"),
    "score_mod": ("xla", {"score_mod": lambda score, *indices: score}, "score_mod"),
    "sinks": ("xla", {"sinks": jnp.zeros(4)}, "sinks"),
    "cap": ("xla", {"logits_soft_cap": 3.0}, "logits_soft_cap"),
    "dropout": ("xla", {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}, "dropout_rate"),
    "value size": ("xla", {"value": VALUE}, "value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_implementations_say_what_they_cannot_do(name):
    implementation, options, message = REFUSED[name]
    with pytest.raises(NotImplementedError, match=f"implementation='{implementation}'.*{message}.*implementation=None"):
        call(**{"value": KEY, "implementation": implementation} | options)


def test_xla_equals_the_rest_and_has_a_gradient():
    arrays = draw(2, 9, 12, 2, 2, 4, 4)
    options = {"bias": normal(4, 9, 12), "mask": Lengths(None, 11), "local_window_size": 8, "is_causal": True}
    options |= {"key_value_seq_lengths": jnp.array([12, 5])}
    value, desired = (  # of the output alone: the log-sum-exp of jax.nn has no gradient
        lambda *arrays, name=name: jnp.sin(dot_product_attention(*arrays, **options, implementation=name)).sum()
        for name in ("xla", "reference")
    )
    for transform in (lambda f: f, jax.jit, lambda f: lambda *arrays: jax.vmap(f)(*(x[None] for x in arrays))):
        actual = transform(jax.value_and_grad(value, (0, 1, 2)))(*arrays)
        assert_close(
            jax.tree.map(jnp.squeeze, actual),
            jax.tree.map(jnp.squeeze, jax.value_and_grad(desired, (0, 1, 2))(*arrays)),
            1e-5,
        )


REPEATED = {
    "windows": {"mask": SlidingWindow(1, 5), "local_window_size": (5, 1)},
    "lengths": {"mask": Lengths(None, jnp.array([3, 12])), "key_value_seq_lengths": jnp.array([12, 7])},
}


@pytest.mark.parametrize("implementation", ["xla", "tokamax"])
@pytest.mark.parametrize("name", REPEATED)
def test_others_get_every_mask_of_a_kind(name, implementation):
    """jax.nn has one argument for a window and one for lengths; two of a kind both count."""
    if implementation == "tokamax":
        pytest.importorskip("tokamax")
    arrays = draw(2, 9, 12, 2, 1, 4, 4)
    with jax.numpy_rank_promotion("allow"):  # tokamax needs it
        actual = dot_product_attention(*arrays, **REPEATED[name], implementation=implementation)
    assert_close(actual, dot_product_attention(*arrays, **REPEATED[name]), 1e-5)


HIGHER = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "jitted jvp": lambda f, x: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "hvp": lambda f, x: jax.jvp(jax.grad(f), (x,), (x,)),
    "grad of grad": lambda f, x: jax.grad(lambda x: jax.grad(f)(x).sum())(x),
    "hessian": lambda f, x: jax.hessian(f)(x),
}


@pytest.mark.parametrize("name", HIGHER)
@pytest.mark.parametrize("implementation", ["xla", "tokamax"])
def test_others_say_that_they_have_first_derivatives_only(name, implementation):
    if implementation == "tokamax":
        pytest.importorskip("tokamax")
    query, key, value = draw(1, 2, 2, 1, 1, 2, 2)

    def loss(query):
        return dot_product_attention(query, key, value, implementation=implementation).sum()

    with pytest.raises(NotImplementedError, match=f"implementation='{implementation}'.*use implementation=None"):
        HIGHER[name](loss, query)


def test_import_loads_nothing_heavy():
    code = "import sys, jaxai.attention; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in process.stdout.split()}
    assert not loaded & {"flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorflow", "tokamax", "sklearn"}
