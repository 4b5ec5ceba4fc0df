"""PyTorch's flex_attention against its definition; Flax's layers with this attention against their own."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import config

from jaxai.attention.adapters import attention_fn, create_block_mask, flex_attention
from jaxai.attention.masks import Causal
from jaxai.attention.position import alibi

TOLERANCE = 2e-6  # float32, a dozen terms of size 1
LAYER_TOLERANCE = 1e-5  # float32, through the layer's projections, and gradients


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# PyTorch

TABLE, DOCUMENTS = numbers(4, 21, seed=1), np.array([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 2]])
T, S = 8, 11
SCORE_MODS = {
    "none": None,
    "relative": lambda score, b, h, q_idx, kv_idx: score + TABLE[h, q_idx - kv_idx + 10],
    "alibi": lambda score, b, h, q_idx, kv_idx: score + (kv_idx - q_idx) * 2.0 ** (-2 * (h + 1)),
    "tanh": lambda score, b, h, q_idx, kv_idx: 2 * jnp.tanh(score / 2),
    "causal": lambda score, b, h, q_idx, kv_idx: jnp.where(q_idx >= kv_idx, score, -jnp.inf),
}
MASK_MODS = {
    "none": None,
    "causal": lambda b, h, q_idx, kv_idx: q_idx >= kv_idx,
    "documents": lambda b, h, q_idx, kv_idx: jnp.asarray(DOCUMENTS)[b, q_idx] == kv_idx // 4,
    "heads": lambda b, h, q_idx, kv_idx: (kv_idx + h) % 3 == 0,
    "some see nothing": lambda b, h, q_idx, kv_idx: kv_idx + 2 <= q_idx,
}


def torch_definition(query, key, value, score_mod, mask_mod, scale):
    """Output and natural log-sum-exp in float64, with both functions called for one score at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group = query.shape[1] // key.shape[1]
    scores = np.einsum("bhqe,bhke->bhqk", query, key.repeat(group, 1)) * scale
    for index in np.ndindex(scores.shape):
        if score_mod is not None:
            scores[index] = score_mod(scores[index], *index)
        if mask_mod is not None and not mask_mod(*index):
            scores[index] = -np.inf
    weights = np.exp(scores)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.log(total)[..., 0]
    return np.einsum("bhqk,bhke->bhqe", weights / np.where(total, total, 1), value.repeat(group, 1)), lse


@pytest.mark.parametrize(
    ("score_mod", "mask_mod", "heads"),
    [*((name, "none", 4) for name in SCORE_MODS), *(("relative", name, 2) for name in MASK_MODS)],
)
@pytest.mark.grid(fast=2)
def test_flex_attention_is_its_definition(score_mod, mask_mod, heads):
    query, key, value = numbers(2, 4, T, 6), numbers(2, heads, S, 6, seed=2), numbers(2, heads, S, 5, seed=3)
    mods = SCORE_MODS[score_mod], MASK_MODS[mask_mod]
    block_mask = None if mods[1] is None else create_block_mask(mods[1], 2, 4, T, S, device="cpu", BLOCK_SIZE=4)
    desired = torch_definition(query, key, value, *mods, scale=0.3)
    call = functools.partial(flex_attention, query, key, value, mods[0], block_mask, scale=0.3, enable_gqa=heads != 4)
    for kernel_options in (None, {"BLOCK_M": 3, "BLOCK_N": 4}, {"BLOCK_N": 8}):
        actual = call(return_lse=True, kernel_options=kernel_options)
        np.testing.assert_allclose(actual[0], desired[0], atol=TOLERANCE)
        np.testing.assert_allclose(actual[1], desired[1], atol=TOLERANCE)
    np.testing.assert_array_equal(call(), call(return_lse=True)[0])


def test_what_a_score_mod_captures_gets_a_gradient():
    query, key, value = (numbers(2, 4, T, 6, seed=n) for n in range(3))

    def loss(kernel_options, table):
        score_mod = lambda score, b, h, q_idx, kv_idx: score + table[h, q_idx - kv_idx + 10]  # noqa: E731
        return jnp.sin(flex_attention(query, key, value, score_mod, Causal(), kernel_options=kernel_options)).sum()

    losses = [functools.partial(loss, options) for options in (None, {"BLOCK_M": 2, "BLOCK_N": 4})]
    gradients = [jax.jit(jax.grad(loss))(TABLE) for loss in losses]
    np.testing.assert_allclose(*gradients, atol=TOLERANCE)
    step, run = 1e-2 * np.cos(TABLE), jax.jit(losses[0])
    difference = run(TABLE + step) - run(TABLE - step)
    np.testing.assert_allclose((gradients[0] * step).sum() * 2, difference, rtol=1e-3)  # the next term, of step ** 3


def test_ready_masks_and_score_functions_fit():
    query, key, value = (numbers(2, 4, T, 6, seed=n) for n in range(3))
    slopes = lambda score, b, h, q_idx, kv_idx: score - 2.0 ** (-2.0 * (h + 1)) * abs(q_idx - kv_idx)  # noqa: E731
    desired = flex_attention(query, key, value, slopes, create_block_mask(MASK_MODS["causal"], None, None, T, T))
    actual = flex_attention(query, key, value, alibi(4), Causal())
    np.testing.assert_allclose(actual, desired, atol=TOLERANCE)


FLEX = {"query": jnp.ones((2, 4, T, 6)), "key": jnp.ones((2, 4, S, 6)), "value": jnp.ones((2, 4, S, 6))}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flex_attention(**FLEX | {"query": jnp.ones((2, 8, T, 6))}), "8 heads and key 4: set enable_gqa=True"),
        (lambda: flex_attention(**FLEX | {"query": jnp.ones((4, T, 6))}), r"give each as \[B, heads, time, size\]"),
        (lambda: flex_attention(**FLEX, kernel_options={"num_warps": 4}), r"kernel_options has \['num_warps'\]"),
        (lambda: flex_attention(**FLEX, kernel_options={"BLOCK_M": 0}), "must be a positive int"),
        (lambda: flex_attention(**FLEX, block_mask=jnp.ones((T, S), bool)), "make one with create_block_mask"),
        (lambda: create_block_mask(lambda b, h, q, k: q - k, None, None, T, S), "bools of rank 4"),
        (lambda: create_block_mask(lambda b, h, q, k: True, None, None, T, S), "bools of rank 4"),
        (
            lambda: create_block_mask(lambda b, h, q, k: jnp.ones((1, 1, 5, 5), bool), 2, None, T, S),
            r"mask_mod gives \(1, 1, 5, 5\)",
        ),
    ],
)
def test_flex_errors_name_the_argument_and_the_fix(call, message, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such checks before ours
    with pytest.raises(ValueError, match=message):
        call()


# Flax

INPUTS = numbers(2, 3, 7, 8)  # two batch axes
MASKS = {
    "none": None,
    "causal": jax.jit(nn.make_causal_mask)(np.ones((1, 1, 7))),
    "padding": jax.jit(nn.make_attention_mask)(np.ones((2, 3, 7)), np.arange(7) < np.array([[[7], [3], [1]]])),
    "of heads": jnp.asarray((np.random.default_rng(5).random((4, 7, 7)) > 0.3) | np.eye(7, dtype=bool)),
}


@functools.cache
def linen_variables():
    return jax.jit(nn.MultiHeadDotProductAttention(num_heads=4).init)(jax.random.key(0), INPUTS)


def linen_layer(attention, **options):
    layer = nn.MultiHeadDotProductAttention(num_heads=4, attention_fn=attention, **options)
    apply = jax.jit(layer.apply, static_argnames=("deterministic", "sow_weights"))
    return functools.partial(apply, linen_variables())


def nnx_layer(attention, **options):
    options = {"num_heads": 4, "in_features": 8, "decode": False} | options
    return nnx.MultiHeadAttention(**options, attention_fn=attention, rngs=nnx.Rngs(0))


SYSTEMS = {
    "linen": (linen_layer, nn.dot_product_attention),
    "nnx": (nnx_layer, nnx.dot_product_attention),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.grid(fast=1)
def test_layers_give_what_they_give_with_their_own_attention(system, mask):
    make, own = SYSTEMS[system]
    mask, inputs = MASKS[mask], (INPUTS, np.asarray(INPUTS)[:, :, ::-1])

    def outputs_and_gradients(layer, x, y):
        forward = lambda x, y: layer(x, y, mask=mask)  # noqa: E731
        gradients = jax.grad(lambda x, y: jnp.sin(forward(x, y)).sum(), (0, 1))
        return forward(x, y), gradients(x, y)

    layers = [make(attention) for attention in (attention_fn, own)]
    actual, desired = (jax.jit(functools.partial(outputs_and_gradients, layer))(*inputs) for layer in layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=LAYER_TOLERANCE), actual, desired)


def test_arguments_are_those_of_flax():
    ours = list(inspect.signature(attention_fn).parameters)
    for flax in (nn.dot_product_attention, nnx.dot_product_attention):
        assert set(inspect.signature(flax).parameters) <= set(ours)
        assert list(inspect.signature(flax).parameters)[:11] == ours[:11]


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("broadcast", [{}, {0: 1}, {1: 1}, {0: 1, 1: 1, -2: 1}, {-3: 1, -1: 1}])
@pytest.mark.grid(fast=2)
def test_any_batch_axes_and_what_broadcasts_to_them(batch, broadcast):
    query, key, value = (numbers(*batch, length, 4, 6, seed=length) for length in (5, 7, 7))
    shape = [*batch, 4, 5, 7]
    for axis, size in broadcast.items():
        shape[axis] = size
    bias, mask = numbers(*shape), np.asarray(numbers(*shape, seed=1)) > -0.5
    mask[..., 0] = True
    for arrays in ({"bias": bias}, {"mask": mask}, {"bias": bias, "mask": mask.astype("float32")}):
        actual, desired = (jax.jit(f)(query, key, value, **arrays) for f in (attention_fn, nn.dot_product_attention))
        np.testing.assert_allclose(actual, desired, atol=TOLERANCE)


def test_mask_objects_go_through_the_layers():
    for make, own in SYSTEMS.values():
        desired = make(own)(INPUTS, mask=MASKS["causal"])
        np.testing.assert_allclose(make(attention_fn)(INPUTS, mask=Causal()), desired, atol=LAYER_TOLERANCE)


def test_a_query_that_sees_nothing_gives_zero():
    query = numbers(2, 5, 4, 6)
    np.testing.assert_array_equal(attention_fn(query, query, query, mask=jnp.zeros((5, 5))), jnp.zeros_like(query))


def test_nnx_grouped_heads_and_is_causal():
    ours, theirs = (nnx_layer(f, num_kv_heads=2) for f in (attention_fn, nnx.dot_product_attention))
    actual, desired = (layer(INPUTS, is_causal=True) for layer in (ours, theirs))
    np.testing.assert_allclose(actual, desired, atol=LAYER_TOLERANCE)


def test_decoding_with_linens_cache():
    def decode(attention):
        layer = nn.MultiHeadDotProductAttention(num_heads=4, attention_fn=attention, decode=True)
        variables, outputs = layer.init(jax.random.key(0), INPUTS), []
        step = jax.jit(functools.partial(layer.apply, mutable="cache"))
        for t in range(7):
            out, cache = step(variables, INPUTS[:, :, t : t + 1])
            variables, outputs = variables | cache, [*outputs, out]
        return jnp.concatenate(outputs, 2)

    desired = linen_layer(nn.dot_product_attention)(INPUTS, mask=MASKS["causal"])
    np.testing.assert_allclose(decode(attention_fn), desired, atol=LAYER_TOLERANCE)


def test_decoding_with_nnxs_cache():
    layer = nnx_layer(attention_fn, decode=True)
    layer.init_cache(INPUTS.shape)
    outputs = [layer(INPUTS[:, :, t : t + 1]) for t in range(7)]
    desired = nnx_layer(nnx.dot_product_attention)(INPUTS, mask=MASKS["causal"])
    np.testing.assert_allclose(jnp.concatenate(outputs, 2), desired, atol=LAYER_TOLERANCE)


def test_dropout_through_linen():
    layer = linen_layer(attention_fn, dropout_rate=0.5)
    drop = lambda n: layer(INPUTS, deterministic=False, rngs={"dropout": jax.random.key(n)})  # noqa: E731
    without = layer(INPUTS, deterministic=True)
    np.testing.assert_array_equal(without, linen_layer(attention_fn)(INPUTS))
    np.testing.assert_array_equal(drop(1), drop(1))
    assert jnp.abs(drop(1) - drop(2)).min(-1).max() > 1e-3
    assert jnp.abs(drop(1) - without).min(-1).max() > 1e-3


def test_dropout_through_nnx():
    layer = nnx_layer(attention_fn, dropout_rate=0.5)
    drop = lambda n: layer(INPUTS, deterministic=False, rngs=nnx.Rngs(dropout=n))  # noqa: E731
    without = layer(INPUTS, deterministic=True)
    np.testing.assert_array_equal(without, nnx_layer(attention_fn)(INPUTS))
    np.testing.assert_array_equal(drop(1), drop(1))
    assert jnp.abs(drop(1) - drop(2)).min(-1).max() > 1e-3
    assert jnp.abs(drop(1) - without).min(-1).max() > 1e-3


def test_dropout_keeps_the_mean():
    query, key, value = jnp.zeros((1, 500, 1, 2)), jnp.zeros((1, 400, 1, 2)), jnp.ones((1, 400, 1, 2))
    out = attention_fn(query, key, value, dropout_rng=jax.random.key(0), dropout_rate=0.25)
    np.testing.assert_allclose(out.mean(), 1, atol=5 * (0.25 / 0.75 / 200_000) ** 0.5)  # five standard deviations


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_dtypes_are_promoted(dtype):
    query, key, value = numbers(2, 5, 4, 6), numbers(2, 7, 4, 6).astype(jnp.bfloat16), numbers(2, 7, 4, 6)
    desired = jax.jit(functools.partial(nn.dot_product_attention, dtype=dtype))(query, key, value)
    for promote_dtype in (None, nnx.nn.dtypes.promote_dtype):
        ours = functools.partial(attention_fn, dtype=dtype, promote_dtype=promote_dtype)
        actual = jax.jit(ours)(query, key, value)
        assert actual.dtype == desired.dtype
        tolerance = TOLERANCE if dtype is None else 0.03  # bfloat16's step at 2 is 0.016; Flax rounds the weights too
        np.testing.assert_allclose(actual.astype(jnp.float32), desired.astype(jnp.float32), atol=tolerance)


ARRAYS = {"query": jnp.ones((2, 3, 5, 4, 6)), "key": jnp.ones((2, 3, 7, 4, 6)), "value": jnp.ones((2, 3, 7, 4, 6))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"module": object()}, "module is set by sow_weights=True"),
        ({"einsum_dot_general": jax.lax.dot_general}, "einsum_dot_general="),
        ({"qk_attn_weights_einsum": jnp.einsum}, "qk_attn_weights_einsum="),
        ({"attn_weights_value_einsum": jnp.einsum}, "attn_weights_value_einsum="),
        ({"dropout_rate": 0.1}, "dropout_rate=0.1 needs dropout_rng"),
        ({"mask": jnp.ones((3, 2, 1, 5, 7))}, r"mask has shape \(3, 2, 1, 5, 7\)"),
        ({"bias": jnp.ones((1, 2, 3, 4, 5, 7))}, r"bias has shape \(1, 2, 3, 4, 5, 7\)"),
        ({"bias": jnp.ones((5, 6))}, "bias has shape"),
        ({"key": jnp.ones((2, 7, 4, 6))}, "the same batch axes"),
    ],
)
def test_flax_errors_name_the_argument_and_the_fix(options, message, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no such checks before ours
    with pytest.raises(ValueError, match=message):
        attention_fn(**ARRAYS | options)


@pytest.mark.parametrize("system", SYSTEMS)
def test_sown_weights_are_refused(system):
    with pytest.raises(ValueError, match="sow_weights=True"):
        SYSTEMS[system][0](attention_fn)(INPUTS, sow_weights=True)
