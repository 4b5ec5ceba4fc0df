"""Completions by both kinds of language models."""

import jax
import numpy as np
import pytest

from jaxai.nn import LanguageModel, RecurrentLanguageModel, RNNConfig, TransformerConfig
from jaxai.nn.decoding import Sampling, advance, complete, empty_state
from tests.ops.oracle import compiled

NETWORKS = {
    "transformer": LanguageModel(
        11, TransformerConfig(embed_dim=16, num_layers=2, num_heads=2, position="learned", max_length=8, init_std=0.5)
    ),
    "recurrent": RecurrentLanguageModel(11, RNNConfig(hidden_dim=16)),
}
PROMPT = np.array([3, 1, 4, 1, 5, 9, 2], np.int32)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.grid(fast=1)
def test_the_likeliest_tokens_of_a_full_context(name, key):
    """A Transformer reads the last half of its context again when it is full; a recurrent network all that there is."""
    network = NETWORKS[name]
    params = compiled(network.init)(key, PROMPT[None])["params"]
    greedy = complete(network, params, PROMPT, 6, key, Sampling(temperature=0), context=8)
    text = PROMPT
    size = 8 if name == "transformer" else 12
    read = compiled(lambda tokens: network.apply({"params": params}, tokens)[0])
    for number in range(6):
        full = {0: 7, 1: 4, 2: 5, 3: 6, 4: 7, 5: 4}[number]
        seen = text[-full:] if name == "transformer" else text
        logits = np.asarray(read(np.pad(seen, (0, size - len(seen)))[None]))  # what is behind has no influence
        text = np.append(text, logits[0, len(seen) - 1].argmax()).astype(np.int32)
    np.testing.assert_array_equal(np.concatenate(list(greedy)), text[len(PROMPT) :])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_advance_goes_on_from_its_state(name, key):
    network = NETWORKS[name]
    params = compiled(network.init)(key, PROMPT[None])["params"]
    whole, _ = advance(network, params, empty_state(network, 1, 8), PROMPT[None])
    _, state = advance(network, params, empty_state(network, 1, 8), PROMPT[None, :4])
    parts, _ = advance(network, params, state, PROMPT[None, 4:])
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-5)  # float32 sums in another order
    desired, _ = network.apply({"params": params}, PROMPT[None])
    np.testing.assert_allclose(whole, jax.numpy.asarray(desired)[:, -1], rtol=1e-5, atol=1e-5)
