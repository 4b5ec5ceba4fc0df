"""Attention forward: against an oracle, in several dtypes, and as a replacement for `jax.nn`'s."""

import functools
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxai.attention import Causal, FunctionMask, SlidingWindow, alibi, dot_product_attention, reference_attention
from tests.attention.oracle import (
    CASES,
    IMPLEMENTATIONS,
    SETTINGS,
    TOLERANCE,
    Case,
    assert_close,
    compiled,
    draw,
    normal,
    some,
)

SMALL = ["reference", "small blocks"]


# Numbers


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("x64")
@pytest.mark.grid(fast=1)
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


@functools.cache
def everything():
    """The arrays of the case "everything", and what the oracle makes of them."""
    arrays = CASES["everything"].draw()
    return arrays, compiled(CASES["everything"].expected)(arrays)


@pytest.mark.parametrize("block_size", [1, (1, 100), (100, 3), (8, 16), 19])
@pytest.mark.usefixtures("x64")
@pytest.mark.grid(fast=3)
def test_any_block_size(block_size):
    arrays, desired = everything()
    call = functools.partial(CASES["everything"].call, implementation="blockwise", block_size=block_size)
    assert_close(compiled(call)(arrays), desired)


@pytest.mark.parametrize("name", ["everything", "lengths", "bias"])
@pytest.mark.grid(fast=1)
def test_float32(name):
    case = CASES[name]
    with jax.enable_x64(True):
        arrays = {key: x.astype("float32") for key, x in case.draw().items()}
        wide = {key: x.astype("float64") for key, x in arrays.items()}
        desired = jax.device_get(compiled(case.expected)(wide))
    for setting in SMALL:
        actual = compiled(functools.partial(case.call, **SETTINGS[setting]))(arrays)
        assert_close(actual, desired, TOLERANCE)
        assert {x.dtype for x in actual} == {np.dtype("float32")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_floats_err_no_more_than_twice_the_reference(dtype):
    case = Case((2, 40, 40, 2, 2, 16, 16), lambda: {"is_causal": True}, lambda b, n, q, k: k <= q)
    with jax.enable_x64(True):
        arrays = {name: x.astype(dtype) for name, x in case.draw().items()}
        wide = {name: x.astype("float64") for name, x in arrays.items()}
        desired = jax.device_get(compiled(case.expected)(wide))
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
    arrays = {name: np.asarray(x)[1] for name, x in case.draw(dtype="float32").items()}
    run = functools.partial(dot_product_attention, implementation=implementation, block_size=4, return_residual=True)
    options = {"mask": RANDOM[:9, :17], "key_value_seq_lengths": np.array([16]), "sinks": np.zeros(2, "float32")}
    options["segment_ids"] = np.zeros(9, int), np.zeros((1, 17), int)
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

    @compiled
    def desired(query, key, value):
        scores = jnp.einsum("bqnh,bknh->bnqk", 1000 * query, key)
        out = jnp.einsum("bnqk,bknv->bqnv", jax.nn.softmax(scores), value)
        return out, jax.nn.logsumexp(scores, -1).swapaxes(1, 2)

    run = functools.partial(dot_product_attention, scale=1000.0, implementation=implementation, block_size=8)
    assert_close(run(query, key, value, return_residual=True), desired(query, key, value))


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
    slopes = np.array([0.3, 0.1], "float32")
    distance = np.abs(np.arange(12)[:, None] - np.arange(12)[None]).astype("float32")
    desired = run(*arrays, bias=-slopes[:, None, None] * distance[None])
    actual = jax.jit(lambda mod: run(*arrays, score_mod=mod))(alibi(jnp.asarray(slopes)))
    assert_close(actual, desired, TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_score_function_that_changes_is_not_remembered(implementation):
    """Without jit, nobody expects a cached trace, nor tracers of an earlier call in it."""
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
@pytest.mark.grid(fast=1)
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
        results = jax.device_get(run(*arrays))
        out, lse = results.pop("jax.nn")
        real = np.arange(9)[None] < np.asarray(options.get("query_seq_lengths", [9]))[:, None]
        real = np.broadcast_to(real if out.ndim == 4 else real[0], out.shape[:-2])
        for actual in results.values():
            assert [(x.shape, x.dtype) for x in actual] == [(x.shape, x.dtype) for x in (out, lse)]
            assert_close([x[real] for x in actual], [out[real], lse[real]], TOLERANCE)


def test_numpy_arrays_and_positional_arguments():
    arrays = [np.asarray(x) for x in draw(2, 9, 12, 2, 2, 4, 4)]
    bias, mask = np.asarray(normal(2, 4, 9, 12)), np.asarray(some(2, 4, 9, 12))
    desired = jax.jit(jax.nn.dot_product_attention)(*arrays, bias, mask)
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
    variables = jax.jit(module.init)(jax.random.key(0), x)

    def loss(variables):
        return jnp.sin(module.apply(variables, x)).sum()

    desired = jax.jit(jax.value_and_grad(loss))(variables)
    calls = []

    def ours(*args, **kwargs):
        calls.append(kwargs)
        return dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", ours)
    assert_close(jax.jit(jax.value_and_grad(loss))(variables), desired, TOLERANCE)
    assert len(calls) == 1


def test_import_loads_nothing_heavy():
    code = "import sys, jaxai.attention; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in process.stdout.split()}
    assert not loaded & {"flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorflow", "tokamax", "sklearn"}
