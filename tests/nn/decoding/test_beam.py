"""Beam search against all sequences there are, and against the search written with lists."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn.decoding.beam import beam_search, translate
from jaxai.nn.decoding.generation import generate
from jaxai.nn.decoding.sampling import Sampling
from jaxai.nn.transformer import TransformerConfig, init_cache, reorder_cache
from jaxai.nn.transformer_models import EncoderDecoder, LanguageModel
from tests.ops.oracle import compiled

END = 0


def table(rows, vocabulary, seed=0):
    """Random log-probabilities of the next token after each last two, for each row: a second-order Markov chain."""
    logits = np.random.default_rng(seed).normal(0, 2, (rows, vocabulary, vocabulary, vocabulary))
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)))


def advance(tables, state, tokens):
    """The state is (row, the token before the last)."""
    row, before = state
    return tables[row, before, tokens[:, 0]], (row, tokens[:, 0])


def reorder(state, rows):
    return jax.tree.map(lambda x: x[rows], state)


def searched(tables, first, **options):
    beams = options["beams"]
    state = (jnp.repeat(jnp.arange(len(tables)), beams), jnp.zeros(len(tables) * beams, jnp.int32))
    run = compiled(lambda: beam_search(advance, reorder, jnp.asarray(tables), state, first, end=END, **options))
    return [np.asarray(x) for x in run()]


def log_probability(table, first, sequence):
    before, last, total = 0, first, 0.0
    for token in sequence:
        total += table[before, last, token]
        before, last = last, token
    return total


def all_sequences(vocabulary, length):
    """Those that end, and those of full length that don't."""
    words = range(1, vocabulary)
    for size in range(length):
        yield from ((*start, END) for start in itertools.product(words, repeat=size))
    yield from itertools.product(words, repeat=length)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, -0.5])
def test_with_enough_beams_it_finds_the_best_of_all(penalty):
    tables, first = table(3, 3), jnp.array([1, 2, 1], jnp.int32)
    sequences, scores = searched(tables, first, beams=16, max_length=4, length_penalty=penalty)
    for row in range(3):
        ranked = sorted(
            ((log_probability(tables[row], int(first[row]), s) / len(s) ** penalty, s) for s in all_sequences(3, 4)),
            reverse=True,
        )
        np.testing.assert_allclose(scores[row], [score for score, _ in ranked[:16]], rtol=1e-5)
        best = ranked[0][1]
        assert sequences[row, 0].tolist() == [*best, *[END] * (4 - len(best))]


def test_few_beams_are_the_search_with_lists():
    tables, first, K, T = table(4, 6, seed=1), jnp.array([1, 2, 3, 4], jnp.int32), 3, 7
    sequences, scores = searched(tables, first, beams=K, max_length=T, length_penalty=1.0)
    for row in range(4):
        alive, finished = [((), 0.0)], []
        for length in range(1, T + 1):
            every = [
                ((*s, token), log_probability(tables[row], int(first[row]), (*s, token)))
                for s, _ in alive
                for token in range(6)
            ]
            every = sorted(every, key=lambda pair: -pair[1])[: 2 * K]
            finished += [(p / length, s) for s, p in every if s[-1] == END or length == T]
            finished = sorted(finished, reverse=True)[:K]
            alive = [pair for pair in every if pair[0][-1] != END][:K]
        np.testing.assert_allclose(scores[row], [score for score, _ in finished], rtol=1e-5)
        assert sequences[row, 0].tolist() == [*finished[0][1], *[END] * (T - len(finished[0][1]))]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.grid(fast=1)
def test_one_beam_of_a_transformer_is_greedy_decoding(scan, key):
    network = LanguageModel(7, TransformerConfig(embed_dim=16, num_layers=2, num_heads=2, init_std=0.5, scan=scan))
    params = compiled(network.init)(key, jnp.zeros((1, 3), jnp.int32))["params"]

    def advance(params, cache, tokens):
        logits, out = network.apply({"params": params}, tokens, cache=cache)
        return logits[:, -1].at[:, END].set(-jnp.inf), out["cache"]  # never ends

    first = jnp.array([3, 5], jnp.int32)
    run = compiled(
        lambda cache: beam_search(advance, reorder_cache, params, cache, first, end=END, beams=1, max_length=6)
    )
    sequences, _ = run(init_cache(network.config, 2, 8))
    empty = init_cache(network.config, 2, 8)
    greedy = generate(advance, params, empty, np.asarray(first)[:, None], 6, key, Sampling(temperature=0))
    np.testing.assert_array_equal(sequences[:, 0], np.concatenate(list(greedy), 1))


def read_again(log_probabilities, begin, beams, length, penalty):
    """Beam search with lists, which reads whole prefixes at each token: the finished ones, and all beams' parents."""
    alive: list[tuple[tuple[int, ...], float]] = [((begin,), 0.0)]
    finished, parents = [], []
    for size in range(1, length + 1):
        following = log_probabilities([prefix for prefix, _ in alive])
        every = [
            ((*prefix, token), p + float(following[place, token]), place)
            for place, (prefix, p) in enumerate(alive)
            for token in range(following.shape[1])
        ]
        every = sorted(every, key=lambda one: -one[1])[: 2 * beams]
        finished += [(p / size**penalty, prefix[1:]) for prefix, p, _ in every if prefix[-1] == END or size == length]
        finished = sorted(finished, reverse=True)[:beams]
        going_on = [one for one in every if one[0][-1] != END][:beams]
        alive = [one[:2] for one in going_on]
        parents.append([place for *_, place in going_on])
    return finished, parents


@pytest.mark.parametrize(("scan", "penalty"), [(False, 0.0), (True, 1.0)])
@pytest.mark.slow
def test_translations_are_those_of_reading_all_again(scan, penalty, key):
    """Two sentences of 6 and 3 tokens, three beams each; the other search has neither cache, padding nor batch."""
    V, K, T, begin = 9, 3, 7, 1
    network = EncoderDecoder(
        V,
        TransformerConfig(embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, tied=False, init_std=0.6, scan=scan),
    )
    source, lengths = np.array([[2, 3, 4, 5, 6, 7], [8, 2, 5, 0, 0, 0]], np.int32), np.array([6, 3], np.int32)
    params = compiled(network.init)(key, source, source, lengths)["params"]
    sizes = {"begin": begin, "end": END, "beams": K, "max_length": T, "length_penalty": penalty}
    run = compiled(lambda: translate(network, params, jnp.asarray(source), jnp.asarray(lengths), **sizes))
    sequences, scores = (np.asarray(x) for x in run())
    read = compiled(
        lambda sentence, prefixes: jax.nn.log_softmax(network.apply({"params": params}, sentence, prefixes)[0])
    )
    for row in range(2):

        def log_probabilities(prefixes, sentence=source[row : row + 1, : lengths[row]]):
            rows = np.zeros((K, T), np.int32)  # what is behind a prefix has no influence on it
            for place, prefix in enumerate(prefixes):
                rows[place, : len(prefix)] = prefix
            return np.asarray(read(np.repeat(sentence, K, 0), rows))[: len(prefixes), len(prefixes[0]) - 1]

        finished, parents = read_again(log_probabilities, begin, K, T, penalty)
        np.testing.assert_allclose(scores[row], [score for score, _ in finished], rtol=1e-4)  # float32 sums of 7
        for place, (_, best) in enumerate(finished):
            assert sequences[row, place].tolist() == [*best, *[END] * (T - len(best))]
        assert any(places != sorted(places) for places in parents)  # else the beams could stay in their places
        assert any(len(set(places)) < len(places) for places in parents[1:])


@pytest.mark.parametrize("options", [{"beams": 0, "max_length": 3}, {"beams": 2, "max_length": 0}])
def test_bad_sizes(options):
    with pytest.raises(ValueError, match="give at least 1"):
        searched(table(1, 3), jnp.array([1], jnp.int32), **options)
