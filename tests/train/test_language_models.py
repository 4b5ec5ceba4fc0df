"""Losses and evaluation of language models, against plain numpy."""

from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxai.data.text import ordered, random_windows
from jaxai.nn import EncoderDecoder, RNNConfig, TransformerConfig, init_encoder_decoder
from jaxai.run import Run
from jaxai.train import (
    Keys,
    language_model_evaluation,
    language_model_trainer,
    next_token_loss,
    translation_evaluation,
    translation_loss,
)
from jaxai.train.language_models import LanguageModelConfig
from jaxai.train.state import TrainState

SMALL = {"length": 6, "batch_size": 4, "decay_steps": 10}
TRANSFORMER = LanguageModelConfig(transformer=TransformerConfig(embed_dim=8, num_layers=1, num_heads=2), **SMALL)
RECURRENT = LanguageModelConfig(network="recurrent", rnn=RNNConfig(hidden_dim=8), eval_batches=0, **SMALL)
IDS = np.random.default_rng(0).integers(0, 5, 150).astype(np.int32)


def nll(logits, targets):
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0]


@cache
def trained(config):
    """The network and the state after three steps, and the losses that these report."""
    network = config.language_model(5)
    trainer = language_model_trainer(config, network)
    state, batches, losses = jax.jit(partial(trainer.init, Keys(0)))(), config.batches(IDS), []
    step = jax.jit(trainer.step)
    for _ in range(3):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    return network, state, losses


def test_loss_is_the_mean_over_all_tokens(key):
    network, state, _ = trained(TRANSFORMER)
    batch = next(TRANSFORMER.batches(IDS))
    loss, metrics = jax.jit(partial(next_token_loss, network))(state.params, batch, key)
    logits, _ = jax.jit(network.apply)({"params": state.params}, batch["input"])
    np.testing.assert_allclose(loss, nll(logits, batch["target"]).mean(), rtol=1e-5)
    assert metrics == {}


def test_parts_of_a_batch_give_the_losses_of_the_whole():
    parts = LanguageModelConfig(transformer=TRANSFORMER.transformer, accumulation_steps=2, **SMALL)
    np.testing.assert_allclose(trained(parts)[2], trained(TRANSFORMER)[2], rtol=1e-5)  # float32 sums in another order


def test_a_recurrent_network_carries_its_state():
    """The second loss is that of the second batch after the first, for which the state is kept."""
    network = RECURRENT.language_model(5)
    trainer, batches = language_model_trainer(RECURRENT, network), RECURRENT.batches(IDS)
    state, step, apply = jax.jit(partial(trainer.init, Keys(0)))(), jax.jit(trainer.step), jax.jit(network.apply)
    first, second = next(batches), next(batches)
    assert first["first"].all()
    assert not second["first"].any()
    after, _ = step(state, first)
    _, metrics = step(after, second)
    _, out = apply({"params": state.params}, first["input"])
    logits, _ = apply({"params": after.params}, second["input"], cache=out["cache"])
    np.testing.assert_allclose(metrics["loss"], nll(logits, second["target"]).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "config", [RECURRENT, LanguageModelConfig(eval_batches=0, transformer=TRANSFORMER.transformer, **SMALL)]
)
def test_validation_in_order(config):
    network, state, _ = trained(config)
    found = language_model_evaluation(config, network, IDS[:100], IDS[100:])(Run(Path()), 3, state)
    sums, cache, apply = np.zeros(2), None, jax.jit(network.apply)
    for batch in ordered(IDS[100:], 4, 6):
        logits, out = apply({"params": state.params}, batch["input"], cache=cache)
        cache = out["cache"] if config is RECURRENT else None
        sums += [(batch["weight"] * nll(logits, batch["target"])).sum(), batch["weight"].sum()]
    assert found == {"validation_loss": pytest.approx(sums[0] / sums[1], rel=1e-5)}
    assert sums[1] == 49


def test_validation_by_random_windows():
    network, state, _ = trained(TRANSFORMER)
    found = language_model_evaluation(TRANSFORMER, network, IDS[:100], IDS[100:])(Run(Path()), 7, state)
    apply = jax.jit(partial(network.apply, {"params": state.params}))
    for name, ids in (("training_loss", IDS[:100]), ("validation_loss", IDS[100:])):
        batches = random_windows(ids, 4, 6, count=20, first=7, seed=1)
        losses = [nll(apply(batch["input"])[0], batch["target"]).mean() for batch in batches]
        assert found[name] == pytest.approx(np.mean(losses), rel=1e-5)


def test_translation_loss_is_the_smoothed_cross_entropy_over_real_tokens(key):
    config = TransformerConfig(embed_dim=8, num_layers=1, num_heads=2, hidden_dim=8, init_std=0.5)
    network = EncoderDecoder(9, config)
    batch = {"source": np.array([[4, 5, 6], [7, 0, 0]]), "target": np.array([[1, 4, 5, 2], [1, 6, 2, 0]])}
    params = jax.jit(partial(init_encoder_decoder, network))(key)
    loss, metrics = jax.jit(partial(translation_loss, network, 0.1, 0))(params, batch, jax.random.key(1))
    logits, _ = jax.jit(network.apply)({"params": params}, batch["source"], batch["target"][:, :-1], np.array([3, 1]))
    logits = np.asarray(logits)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = [(0, 0, 4), (0, 1, 5), (0, 2, 2), (1, 0, 6), (1, 1, 2)]
    nll = -np.mean([log_p[place] for place in places])
    uniform = -np.mean([log_p[row, column].mean() for row, column, _ in places])
    np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.9 * nll + 0.1 * uniform, rtol=1e-5)
    first = {name: rows[:1] for name, rows in batch.items()}
    state = TrainState(0, None, params, None, key, None)
    found = translation_evaluation(network, 0, [batch, first])(Run(Path()), 0, state)["validation_loss"]
    both = -np.mean([log_p[place] for place in places + places[:3]])
    np.testing.assert_allclose(found, both, rtol=1e-5)
