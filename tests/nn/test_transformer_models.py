"""Language model, encoder and encoder-decoder against the same in NumPy, and their parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erf

from jaxai.nn.transformer import TransformerConfig, init_cache
from jaxai.nn.transformer_models import Encoder, EncoderDecoder, LanguageModel
from tests.nn.conftest import SHAPES, TINY, TOLERANCE, initialised, tokens
from tests.ops.oracle import compiled


class Oracle:
    """Encoder and decoder in NumPy, float64, without batch axis; one loop over heads."""

    def __init__(self, shape, params):
        self.shape, self.params = shape, jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def dense(self, x, layer):
        return x @ layer["kernel"] + layer.get("bias", 0)

    def norm(self, x, layer):
        if self.shape.norm == "rms":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * layer["scale"] + layer.get("bias", 0)

    def activation(self, x):
        return {
            "gelu": lambda: x * 0.5 * (1 + erf(x / np.sqrt(2))),
            "gelu_tanh": lambda: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
            "relu": lambda: np.maximum(x, 0),
            "silu": lambda: x / (1 + np.exp(-x)),
        }[self.shape.activation]()

    def turned(self, x):
        """Each pair (i, i + H/2) as a complex number, times exp(i position frequency)."""
        half = x.shape[-1] // 2
        angle = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(half) / half)
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    def mix(self, queries, keys, values, causal):
        """Heads [N, T, H], [K, S, H] and [K, S, H] to [T, N H]; each key serves N / K queries."""
        (N, time, size), (K, others, _), out = queries.shape, keys.shape, []
        for n in range(N):
            score = queries[n] @ keys[n * K // N].T / np.sqrt(size)
            score = np.where(np.tri(time, others, dtype=bool) | (not causal), score, -np.inf)
            weights = np.exp(score - score.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ values[n * K // N])
        return np.concatenate(out, -1)

    def heads(self, x, layer):
        return self.dense(x, layer).reshape(len(x), -1, self.shape.head_dim).swapaxes(0, 1)

    def attention(self, x, layer, causal):
        N, K = self.shape.num_heads, self.shape.num_kv_heads or self.shape.num_heads
        queries, keys, values = np.split(self.heads(x, layer["query_key_value"]), [N, N + K])
        if self.shape.position == "rotary":
            queries, keys = (np.stack([self.turned(x) for x in heads]) for heads in (queries, keys))
        return self.dense(self.mix(queries, keys, values, causal), layer["out"])

    def cross_attention(self, x, memory, layer):
        keys, values = np.split(self.heads(memory, layer["key_value"]), 2)
        return self.dense(self.mix(self.heads(x, layer["query"]), keys, values, False), layer["out"])

    def mlp(self, x, layer):
        y = self.dense(x, layer["in"])
        if not self.shape.gated:
            return self.dense(self.activation(y), layer["out"])
        half = y.shape[-1] // 2
        return self.dense(self.activation(y[:, :half]) * y[:, half:], layer["out"])

    def embedded(self, ids):
        embedding = self.params["embedding"]
        learned = embedding["positions"][: len(ids)] if self.shape.position == "learned" else 0
        return embedding["tokens"][ids] + learned

    def stack(self, x, params, causal, memory=None):
        for number in range(self.shape.num_layers):
            block = params["block" if self.shape.share_layers else f"block_{number}"]
            x = x + self.attention(self.norm(x, block["norm_attention"]), block["attention"], causal)
            if memory is not None:
                x = x + self.cross_attention(self.norm(x, block["norm_cross"]), memory, block["cross_attention"])
            x = x + self.mlp(self.norm(x, block["norm_mlp"]), block["mlp"])
        return self.norm(x, params["norm"])

    def logits(self, ids, source=None):
        """Of a language model, or of a target after its source."""
        memory = None if source is None else self.stack(self.embedded(source), self.params["encoder"], False)
        embedding = self.params["embedding"]
        kernel = embedding["tokens"].T if self.shape.tied else embedding["logits"]
        return self.stack(self.embedded(ids), self.params["decoder"], True, memory) @ kernel


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.grid(fast=1)
def test_logits_are_those_of_numpy(name, key):
    network, ids = LanguageModel(11, SHAPES[name]), tokens(2, 9)
    params = initialised(network, ids, key=key)
    logits, _ = compiled(network.apply)({"params": params}, ids)
    assert logits.dtype == jnp.float32
    for row in range(2):
        np.testing.assert_allclose(logits[row], Oracle(network.config, params).logits(ids[row]), atol=TOLERANCE)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.grid(fast=1)
def test_translations_are_those_of_numpy(name, key):
    """Encoder, cross-attention and decoder; the second source is padded."""
    network, source, target = EncoderDecoder(11, SHAPES[name]), tokens(2, 7), tokens(2, 9, seed=1)
    lengths = np.array([7, 4], np.int32)
    params = initialised(network, source, target, lengths, key=key)
    logits, _ = compiled(network.apply)({"params": params}, source, target, lengths)
    for row, length in enumerate(lengths):
        desired = Oracle(network.config, params).logits(target[row], source[row, :length])
        np.testing.assert_allclose(logits[row], desired, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["default", "Llama"])
def test_hidden_states_of_an_encoder_are_those_of_numpy(name, key):
    network, ids = Encoder(11, SHAPES[name]), tokens(1, 9)
    params = initialised(network, ids, key=key)
    hidden, _ = compiled(network.apply)({"params": params}, ids)
    oracle = Oracle(network.config, params)
    desired = oracle.stack(oracle.embedded(ids[0]), oracle.params["encoder"], False)
    np.testing.assert_allclose(hidden[0], desired, atol=TOLERANCE)


def test_parameters_of_a_tiny_translator(key):
    """11 tokens, width 16: four blocks of 12 x 16^2 + 13 x 16, two with cross-attention's 4 x 16^2 + 6 x 16 more."""
    token = jnp.zeros((1, 1), jnp.int32)
    params = jax.eval_shape(EncoderDecoder(11, TINY).init, key, token, token)["params"]
    block, cross, norms = 12 * 16**2 + 13 * 16, 4 * 16**2 + 6 * 16, 2 * 2 * 16
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11 * 16 + 4 * block + 2 * cross + norms


def test_parameters_of_nanogpt_s_networks(key):
    """nanoGPT prints 0.80M and 10.65M for these, without the positions."""
    for shape, count in [
        (TransformerConfig(position="learned", max_length=64, bias=False), 804_096),
        (
            TransformerConfig(embed_dim=384, num_layers=6, num_heads=6, position="learned", max_length=256, bias=False),
            10_745_088,
        ),
    ]:
        params = jax.eval_shape(LanguageModel(65, shape).init, key, jnp.zeros((1, 8), int))["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_padding_changes_nothing(key):
    network, ids, lengths = Encoder(11, TINY), tokens(2, 8), np.array([8, 5], np.int32)
    params = initialised(network, ids, lengths, key=key)
    other = ids.copy()
    other[1, 5:] = 3
    apply = compiled(network.apply)
    x, y = (apply({"params": params}, t, lengths)[0] for t in (ids, other))
    np.testing.assert_array_equal(x[0], y[0])
    np.testing.assert_allclose(x[1, :5], y[1, :5], atol=1e-6)
    alone, _ = apply({"params": params}, ids[1:, :5], lengths[1:])
    np.testing.assert_allclose(x[1:, :5], alone, atol=TOLERANCE)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.slow
def test_beams_decode_as_the_whole_target(scan, key):
    """Three beams of two sentences: each row of the memory serves its own, and is read once."""
    network = EncoderDecoder(11, dataclasses.replace(TINY, scan=scan))
    source, target, lengths = tokens(2, 7), tokens(6, 5, seed=1), np.array([7, 4], np.int32)
    params = initialised(network, source, target[:2], lengths, key=key)

    @compiled
    def both(params):
        repeated = np.repeat(source, 3, 0), target, np.repeat(lengths, 3)
        whole, _ = network.apply({"params": params}, *repeated)
        memory, _ = network.apply({"params": params}, source, lengths, method="encode")
        cache, parts = init_cache(network.config, 6, 8), []
        for step in range(5):
            logits, out = network.apply(
                {"params": params}, target[:, step : step + 1], memory, lengths, cache=cache, method="decode"
            )
            memory, cache = None, out["cache"]
            parts.append(logits)
        return whole, jnp.concatenate(parts, 1)

    whole, parts = both(params)
    np.testing.assert_allclose(parts, whole, atol=TOLERANCE)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters(key):
    ids = tokens(2, 6)
    half, full = (LanguageModel(11, TINY, dtype) for dtype in (jnp.bfloat16, None))
    variables = compiled(half.init)(key, ids)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    (a, _), (b, _) = (compiled(network.apply)(variables, ids) for network in (half, full))
    assert a.dtype == b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.15)  # 8 bits through two blocks
    assert np.abs(a - b).max() > 1e-4


def test_bfloat16_activations_give_float32_gradients_near_those_of_float32(key):
    ids = tokens(2, 6)
    networks = {name: LanguageModel(11, TINY, jnp.dtype(name)) for name in ("bfloat16", "float32")}
    variables = compiled(networks["float32"].init)(key, ids)
    gradients = {}
    for name, network in networks.items():

        def loss(params, network=network):
            (logits, _), state = network.apply({"params": params}, ids, capture_intermediates=True, mutable=True)
            inside = jax.tree.leaves(state["intermediates"]["decoder"]["block_0"])
            floats = {leaf.dtype for leaf in inside if jnp.issubdtype(leaf.dtype, jnp.floating)}
            assert floats == {jnp.dtype(network.dtype)}
            assert logits.dtype == jnp.float32
            return optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean()

        gradients[name] = jax.jit(jax.grad(loss))(variables["params"])
    for half, full in zip(*map(jax.tree.leaves, gradients.values()), strict=True):
        assert half.dtype == full.dtype == jnp.float32
        assert np.abs(half - full).max() < 0.05 * np.abs(full).max() + 1e-4  # 8 bits through two blocks and back


def test_more_tokens_than_positions(key):
    network = LanguageModel(11, SHAPES["GPT-2"])
    with pytest.raises(ValueError, match="13 tokens, but max_length=12"):
        jax.eval_shape(network.init, key, tokens(1, 13))


def test_memory_must_be_given_once(key):
    network = EncoderDecoder(11, TINY)
    source, target = tokens(1, 4), tokens(1, 3)
    variables, cache = jax.eval_shape(network.init, key, source, target), init_cache(TINY, 1, 4)
    with pytest.raises(ValueError, match="memory=None needs a cache"):
        jax.eval_shape(lambda v: network.apply(v, target, None, cache=cache, method="decode"), variables)
