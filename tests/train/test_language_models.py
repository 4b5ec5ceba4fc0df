"""Losses and evaluation of language models, against plain numpy."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxai.data.text import ordered, random_windows
from jaxai.nn import RNNConfig, TransformerConfig
from jaxai.run import Run
from jaxai.train import Keys, language_model_evaluation, language_model_trainer, next_token_loss
from jaxai.train.language_models import LanguageModelConfig

SMALL = {"length": 6, "batch_size": 4, "decay_steps": 10}
TRANSFORMER = LanguageModelConfig(transformer=TransformerConfig(embed_dim=8, num_layers=1, num_heads=2), **SMALL)
RECURRENT = LanguageModelConfig(network="recurrent", rnn=RNNConfig(hidden_dim=8), eval_batches=0, **SMALL)
IDS = np.random.default_rng(0).integers(0, 5, 150).astype(np.int32)


def nll(logits, targets):
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0]


def trained(config):
    """The network and the state after three steps, and the losses that these report."""
    network = config.language_model(5)
    trainer = language_model_trainer(config, network)
    state, batches, losses = trainer.init(Keys(0)), config.batches(IDS), []
    step = jax.jit(trainer.step)
    for _ in range(3):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    return network, state, losses


def test_loss_is_the_mean_over_all_tokens(key):
    network, state, _ = trained(TRANSFORMER)
    batch = next(TRANSFORMER.batches(IDS))
    loss, metrics = next_token_loss(network, state.params, batch, key)
    logits, _ = network.apply({"params": state.params}, batch["input"])
    np.testing.assert_allclose(loss, nll(logits, batch["target"]).mean(), rtol=1e-5)
    assert metrics == {}


def test_parts_of_a_batch_give_the_losses_of_the_whole():
    parts = LanguageModelConfig(transformer=TRANSFORMER.transformer, accumulation_steps=2, **SMALL)
    np.testing.assert_allclose(trained(parts)[2], trained(TRANSFORMER)[2], rtol=1e-5)  # float32 sums in another order


def test_a_recurrent_network_carries_its_state():
    """The second loss is that of the second batch after the first, for which the state is kept."""
    network = RECURRENT.language_model(5)
    trainer, batches = language_model_trainer(RECURRENT, network), RECURRENT.batches(IDS)
    state = trainer.init(Keys(0))
    first, second = next(batches), next(batches)
    assert first["first"].all()
    assert not second["first"].any()
    after, _ = trainer.step(state, first)
    _, metrics = trainer.step(after, second)
    _, out = network.apply({"params": state.params}, first["input"])
    logits, _ = network.apply({"params": after.params}, second["input"], cache=out["cache"])
    np.testing.assert_allclose(metrics["loss"], nll(logits, second["target"]).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "config", [RECURRENT, LanguageModelConfig(eval_batches=0, transformer=TRANSFORMER.transformer, **SMALL)]
)
def test_validation_in_order(config):
    network, state, _ = trained(config)
    found = language_model_evaluation(config, network, IDS[:100], IDS[100:])(Run(Path()), 3, state)
    sums, cache = np.zeros(2), None
    for batch in ordered(IDS[100:], 4, 6):
        logits, out = network.apply({"params": state.params}, batch["input"], cache=cache)
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
