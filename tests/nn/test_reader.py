"""The reader of stories: what it sees, and what it doesn't."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn.reader import Reader
from jaxai.nn.transformer import TransformerConfig
from tests.ops.oracle import compiled

SHAPE = TransformerConfig(
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    position="learned",
    max_length=8,
    share_layers=True,
    init_std=0.3,
)


def story(seed=0, facts=5, width=4):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 9, (3, facts + 1, width)).astype(np.int32)
    return ids[:, :-1], np.array([5, 3, 1], np.int32)[:3], ids[:, -1]


@pytest.fixture(scope="module")
def reader():
    network = Reader(9, 5, SHAPE)
    params = compiled(network.init)(jax.random.key(0), *story())["params"]
    return network, params, compiled(lambda *x: network.apply({"params": params}, *x)[0])


def test_facts_behind_the_last_change_nothing(reader):
    facts, count, question = story()
    logits = reader[2](facts, count, question)
    assert logits.shape == (3, 5)
    other = facts.copy()
    other[1, 3:], other[2, 1:] = 7, 0
    np.testing.assert_allclose(reader[2](other, count, question), logits, atol=1e-6)
    other[1, 2] = 0
    assert np.abs(reader[2](other, count, question)[1] - logits[1]).max() > 1e-4


def test_a_shorter_array_of_the_same_facts_is_the_same_story(reader):
    facts, count, question = story()
    whole = reader[2](facts, count, question)
    np.testing.assert_allclose(reader[2](facts[1:2, :3], count[1:2], question[1:2])[0], whole[1], atol=1e-6)


def test_order_of_words_and_of_facts_counts(reader):
    facts, count, question = story()
    logits = reader[2](facts, count, question)
    for changed in (facts[:, :, ::-1], facts[:, ::-1]):
        assert np.abs(reader[2](changed, count, question)[0] - logits[0]).max() > 1e-4


def test_a_word_starts_as_nearly_the_same_at_every_place():
    facts, count, question = story()
    network = Reader(9, 5, dataclasses.replace(SHAPE, embed_dim=256, num_heads=4, mimetic=True))
    params = jax.tree.map(np.asarray, compiled(network.init)(jax.random.key(0), facts, count, question)["params"])
    first, second = 1 + params["places"][:2]
    word = params["words"][1]
    alike = (word * first) @ (word * second) / np.linalg.norm(word * first) / np.linalg.norm(word * second)
    assert 0.6 < alike < 0.95


def test_one_block_for_all_layers(reader):
    _, params, _ = reader
    deeper = Reader(9, 5, dataclasses.replace(SHAPE, num_layers=5))
    again = compiled(deeper.init)(jax.random.key(0), *story())["params"]
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, params)
    assert set(params) == {"words", "places", "recency", "blocks", "labels"}


def test_statistics_are_the_attention_of_every_layer(reader):
    network, params, _ = reader
    _, out = compiled(lambda *x: network.apply({"params": params}, *x, statistics=True))(*story())
    assert len(out["statistics"]) == 2
    weights = out["statistics"][0]["attention"].weights
    assert weights.shape == (3, 6, 2, 6)  # question and facts
    assert not weights[1, ..., 4:].any()


def test_more_facts_than_positions():
    network = Reader(9, 5, SHAPE)
    with pytest.raises(ValueError, match="8 facts and a question, but max_length=8"):
        jax.eval_shape(network.init, jax.random.key(0), *story(facts=8))
