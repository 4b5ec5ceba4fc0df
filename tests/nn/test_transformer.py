"""Transformer blocks: initialisation, caches, scan and remat, causality, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn.transformer import TransformerConfig, init_cache, lengths_of, reorder_cache
from jaxai.nn.transformer_models import EncoderDecoder, LanguageModel
from tests.nn.conftest import SHAPES, TINY, TOLERANCE, initialised, tokens
from tests.ops.oracle import compiled


def test_initialisation_is_gpt2_s(key):
    network = LanguageModel(50, TransformerConfig(embed_dim=64, num_layers=8, position="learned", max_length=32))
    params = compiled(network.init)(key, tokens(1, 4))["params"]
    block = params["decoder"]["block_3"]
    for kernel, std in [
        (params["embedding"]["tokens"], 0.02),
        (block["attention"]["query_key_value"]["kernel"], 0.02),
        (block["mlp"]["in"]["kernel"], 0.02),
        (block["attention"]["out"]["kernel"], 0.005),
        (block["mlp"]["out"]["kernel"], 0.005),
    ]:
        np.testing.assert_allclose(np.asarray(kernel).std(), std, rtol=0.1)
    assert all(not np.asarray(leaf["bias"]).any() for leaf in (block["norm_mlp"], block["mlp"]["in"]))


def test_mimetic_queries_start_as_their_keys(key):
    """Four heads of queries, two of keys: tokens that are alike look at each other from the start."""
    network = LanguageModel(11, dataclasses.replace(TINY, embed_dim=64, num_kv_heads=2, mimetic=True, bias=False))
    block = compiled(network.init)(key, tokens(1, 4))["params"]["decoder"]["block_1"]["attention"]
    heads = np.asarray(block["query_key_value"]["kernel"]).reshape(64, 8, 16)
    queries, keys, values = np.split(heads, [4, 6], 1)
    np.testing.assert_array_equal(queries, np.repeat(keys, 2, 1))
    assert keys.std() == pytest.approx(64**-0.5, rel=0.1)
    assert values.std() == pytest.approx(TINY.init_std, rel=0.1)
    assert np.abs(keys[:, 0] - keys[:, 1]).max() > 0.1


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.grid(fast=1)
def test_cache_continues_the_text(name, key):
    network, ids = LanguageModel(11, SHAPES[name]), tokens(2, 9)
    params = initialised(network, ids, key=key)

    @compiled
    def both(params):
        whole, _ = network.apply({"params": params}, ids)
        cache, parts = init_cache(network.config, 2, 10), []
        for first, last in [(0, 5), (5, 6), (6, 9)]:
            logits, out = network.apply({"params": params}, ids[:, first:last], cache=cache)
            cache = out["cache"]
            parts.append(logits)
        return whole, jnp.concatenate(parts, 1), lengths_of(cache)

    whole, parts, lengths = both(params)
    np.testing.assert_allclose(parts, whole, atol=TOLERANCE)
    assert lengths.tolist() == [9, 9]


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.grid(fast=1)
def test_scan_and_remat_change_neither_values_nor_gradients(scan, remat, key):
    ids = tokens(2, 7)
    plain = LanguageModel(11, TINY)
    other = LanguageModel(11, dataclasses.replace(TINY, scan=scan, remat=remat))
    params = initialised(plain, ids, key=key)

    def stacked(params):
        if not scan:
            return params
        blocks = [params["decoder"][f"block_{layer}"] for layer in range(2)]
        block = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        return params | {"decoder": {"block": block, "norm": params["decoder"]["norm"]}}

    def of(network, arranged):
        loss = lambda params: jnp.sin(network.apply({"params": arranged(params)}, ids)[0]).sum()  # noqa: E731
        return jax.value_and_grad(loss)(params)

    expected, actual = compiled(lambda: (of(plain, lambda params: params), of(other, stacked)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, expected)  # sums of 154 sines
    shapes = jax.eval_shape(other.init, key, ids)["params"]
    assert jax.tree.map(jnp.shape, stacked(params)) == jax.tree.map(jnp.shape, shapes)


def test_scan_decodes_with_a_stacked_cache(key):
    network, ids = LanguageModel(11, dataclasses.replace(TINY, scan=True)), tokens(2, 6)

    @compiled
    def both():
        variables = network.init(key, ids)
        whole, _ = network.apply(variables, ids)
        first, out = network.apply(variables, ids[:, :4], cache=init_cache(network.config, 2, 8))
        second, out = network.apply(variables, ids[:, 4:], cache=out["cache"])
        return whole, jnp.concatenate([first, second], 1), lengths_of(out["cache"])

    whole, parts, lengths = both()
    np.testing.assert_allclose(parts, whole, atol=TOLERANCE)
    assert lengths.tolist() == [6, 6]


def test_no_token_sees_the_future(key):
    network, ids = LanguageModel(11, TINY), tokens(1, 8)
    params = initialised(network, ids, key=key)
    changed = ids.copy()
    changed[0, 5] = (changed[0, 5] + 1) % 11
    before, after = (np.asarray(compiled(network.apply)({"params": params}, x)[0]) for x in (ids, changed))
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert np.abs(before[0, 5:] - after[0, 5:]).max(-1).min() > 1e-4


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.slow
def test_reordered_beams_go_on_from_their_parents(scan, key):
    """Three beams of two sentences take other places within their sentence, one parent twice; the memory stays."""
    network = EncoderDecoder(11, dataclasses.replace(TINY, scan=scan, num_kv_heads=2))
    source, target, lengths = tokens(2, 7), tokens(6, 6, seed=1), np.array([7, 4], np.int32)
    params = initialised(network, source, target[:2], lengths, key=key)
    parents = jnp.array([2, 0, 1, 5, 5, 3])
    chosen = np.concatenate([target[np.asarray(parents), :3], target[:, 3:]], 1)

    @compiled
    def both(params):
        whole, _ = network.apply({"params": params}, np.repeat(source, 3, 0), chosen, np.repeat(lengths, 3))
        memory, _ = network.apply({"params": params}, source, lengths, method="encode")
        decode = lambda *inputs, cache: network.apply({"params": params}, *inputs, cache=cache, method="decode")  # noqa: E731
        _, out = decode(target[:, :3], memory, lengths, cache=init_cache(network.config, 6, 8))
        logits, _ = decode(chosen[:, 3:], None, lengths, cache=reorder_cache(out["cache"], parents))
        return whole[:, 3:], logits

    whole, parts = both(params)
    np.testing.assert_allclose(parts, whole, atol=TOLERANCE)


def test_statistics_hold_the_weights(key):
    network = EncoderDecoder(11, TINY)
    source, target, lengths = tokens(2, 7), tokens(2, 5, seed=1), np.array([7, 4], np.int32)
    variables = compiled(network.init)(key, source, target, lengths)
    logits, out = compiled(lambda v: network.apply(v, source, target, lengths, statistics=True))(variables)
    plain, _ = compiled(network.apply)(variables, source, target, lengths)
    np.testing.assert_allclose(logits, plain, atol=TOLERANCE)
    assert len(out["statistics"]) == len(out["encoder_statistics"]) == 2
    for found in out["statistics"]:
        cross, own = (np.asarray(found[name].weights) for name in ("cross_attention", "attention"))
        assert cross.shape == (2, 5, 4, 7)
        assert own.shape == (2, 5, 4, 5)
        np.testing.assert_allclose(cross.sum(-1), 1, atol=1e-5)
        assert not cross[1, ..., 4:].any()
        assert not np.triu(own.swapaxes(1, 2), 1).any()


def test_dropout_is_off_unless_training(key):
    network, ids = LanguageModel(11, dataclasses.replace(TINY, dropout=0.5)), tokens(2, 6)
    variables = compiled(network.init)(key, ids)
    train = compiled(lambda key: network.apply(variables, ids, train=True, rngs={"dropout": key})[0])
    first, again, other = (train(k) for k in (key, key, jax.random.key(1)))
    plain, _ = compiled(network.apply)(variables, ids)
    without, _ = compiled(LanguageModel(11, TINY).apply)(variables, ids)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    np.testing.assert_array_equal(plain, without)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 18}, "num_heads=4 must divide embed_dim=18"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"embed_dim": 12}, "must be even"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"share_layers": True, "scan": True}, "choose one"),
        ({"init_std": 0.0}, "init_std more"),
    ],
)
def test_bad_shapes(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)
