"""Translations of many sentences at once."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn import EncoderDecoder, TransformerConfig, init_encoder_decoder
from jaxai.nn.decoding import Translator, translate
from jaxai.nn.decoding.translator import chunks
from tests.ops.oracle import compiled


class Digits:
    """Digits as tokens; 1 begins and 2 ends a sentence."""

    def encode(self, sentences):
        return [np.array([int(digit) for digit in sentence], np.int32) for sentence in sentences]

    def decode(self, ids):
        ends = np.flatnonzero(ids == 2)
        return "".join(map(str, ids[: ends[0]] if len(ends) else ids))


def translator(key):
    network = EncoderDecoder(10, TransformerConfig(embed_dim=16, num_layers=2, num_heads=2, init_std=0.6))
    params = compiled(partial(init_encoder_decoder, network))(key)
    return Translator(network, params, Digits(), 1, 2, beams=2, length_penalty=1.0)


def test_chunks_hold_every_sentence_once():
    rng = np.random.default_rng(0)
    ids = [rng.integers(4, 9, size).astype(np.int32) for size in rng.integers(0, 40, 150)]
    seen = []
    for rows, source, lengths in chunks(ids):
        assert source.shape == (64, source.shape[1])
        assert source.shape[1] % 16 == 0
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(source[place, : lengths[place]], ids[row])
            assert not source[place, lengths[place] :].any()
        seen += rows
    assert sorted(seen) == [row for row in range(150) if len(ids[row])]


def test_translations_come_in_the_order_of_the_sentences(key):
    """Each is the best of a search for its sentence alone."""
    made = translator(key)
    sentences = ["345", "", "98765", "7"]
    found = made(sentences)
    assert found[1] == ""
    for sentence, said in zip(sentences, found, strict=True):
        if not sentence:
            continue
        (ids,) = made.tokenizer.encode([sentence])
        sizes = {"begin": 1, "end": 2, "beams": 2, "max_length": 16 * 3 // 2 + 8}
        run = compiled(
            lambda ids=ids, sizes=sizes: translate(
                made.network, made.params, jnp.asarray(ids[None]), jnp.array([len(ids)], jnp.int32), **sizes
            )
        )
        assert said == made.tokenizer.decode(np.asarray(run()[0][0, 0]))


@pytest.mark.slow
def test_attention_of_a_translation_over_its_source(key):
    written, tokens, attention = translator(key).attention("34567", "8989", most=4)
    assert written.tolist() == [8, 9, 8, 9]
    assert tokens.tolist() == [3, 4, 5, 6]
    assert attention.weights.shape == (2, 1, 4, 2, 4)
    np.testing.assert_allclose(attention.weights.sum(-1), 1, rtol=1e-5)
    whole, *_ = translator(key).attention("34567", "89", most=4)
    assert whole.tolist() == [8, 9, 2]
