"""Generated text: the same with a cache as by reading everything again, in any chunks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn.decoding.generation import generate
from jaxai.nn.decoding.sampling import Sampling, sample
from jaxai.nn.transformer import TransformerConfig, init_cache
from jaxai.nn.transformer_models import LanguageModel
from tests.ops.oracle import compiled

NETWORK = LanguageModel(
    13, TransformerConfig(embed_dim=16, num_layers=2, num_heads=2, position="learned", max_length=16, init_std=0.5)
)


def advance(params, cache, tokens):
    logits, out = NETWORK.apply({"params": params}, tokens, cache=cache)
    return logits[:, -1], out["cache"]


@pytest.fixture(scope="module")
def params():
    return compiled(NETWORK.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def written(params, prompt, count, sampling=Sampling(), **options):  # noqa: B008
    empty = init_cache(NETWORK.config, len(prompt), 16)
    pieces = generate(advance, params, empty, prompt, count, jax.random.key(7), sampling, **options)
    return np.concatenate(list(pieces), 1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0), Sampling(0.8, top_k=5, top_p=0.9)])
@pytest.mark.grid(fast=1)
def test_the_cache_gives_the_tokens_of_reading_everything_again(params, sampling):
    prompt = np.array([[1, 2, 3], [4, 5, 6]], np.int32)

    @compiled
    def following(params, tokens, number):
        logits = NETWORK.apply({"params": params}, tokens)[0][:, prompt.shape[1] - 1 + number]
        return sample(logits, jax.random.fold_in(jax.random.key(7), number), sampling)[:, None]

    text = prompt
    for number in range(10):
        padded = np.pad(text, ((0, 0), (0, 16 - text.shape[1])))
        text = np.concatenate([text, following(params, padded, number)], 1)
    np.testing.assert_array_equal(written(params, prompt, 10, sampling), text[:, 3:])


def test_chunks_change_nothing_and_a_full_context_starts_again(params):
    prompt = np.array([[1, 2, 3]], np.int32)
    whole = written(params, prompt, 40, context=16)
    assert whole.shape == (1, 40)
    np.testing.assert_array_equal(whole, written(params, prompt, 40, context=16, chunk=5))
    # 13 tokens fill the context; the next come as after a prompt of the last 8, but for their numbers in the draw
    greedy = written(params, prompt, 40, Sampling(temperature=0), context=16)
    again = written(params, np.concatenate([prompt, greedy[:, :13]], 1)[:, -8:], 8, Sampling(temperature=0))
    np.testing.assert_array_equal(greedy[:, 13:21], again)


def test_loops_of_known_length_on_a_gpu_write_the_same(params, monkeypatch):
    prompt = np.array([[1, 2, 3]], np.int32)
    desired = written(params, prompt, 13, chunk=5)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_array_equal(written(params, prompt, 13, chunk=5), desired)


def test_a_long_prompt_is_cut_to_half_the_context(params):
    prompt = np.arange(40, dtype=np.int32)[None] % 13
    greedy = partial(written, params, count=5, sampling=Sampling(temperature=0), context=16)
    np.testing.assert_array_equal(greedy(prompt), greedy(prompt[:, -8:]))


@pytest.mark.parametrize(
    ("prompt", "context", "message"),
    [(np.zeros((1, 0), np.int32), None, "prompt is empty"), (np.zeros((1, 1), np.int32), 1, "context=1")],
)
def test_bad_input(params, prompt, context, message):
    with pytest.raises(ValueError, match=message):
        written(params, prompt, 3, context=context)
