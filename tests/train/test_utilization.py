"""The share of the peak, against nanoGPT's arithmetic."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxai.distributed.mesh import make_mesh
from jaxai.distributed.peaks import PEAKS, utilization
from jaxai.nn import RecurrentLanguageModel, RNNConfig, TransformerConfig
from jaxai.train.language_models import LanguageModelConfig, init_language_model, language_model_speed
from jaxai.train.loop import Result
from jaxai.train.utilization import language_model_operations


def test_as_nanogpt_counts():
    """Its `estimate_mfu` for GPT-2 on an A100: 6 N + 12 L H Q T operations a token."""
    layers, heads, size, tokens = 12, 12, 64, 1024
    positions, embedding, vectors = 1024 * 768, 50257 * 768, (2 * 12 + 1) * 768
    parameters = positions + embedding + vectors + 12 * 12 * 768**2
    token = language_model_operations(parameters - positions, layers, heads * size, tokens)
    assert token == 6 * (parameters - positions) + 12 * layers * heads * size * tokens
    operations = token * tokens * 12 * 40 / 0.25  # 480 sequences in a quarter of a second
    assert utilization(operations, "NVIDIA A100-SXM4-80GB", 8) == pytest.approx(operations / (8 * 312e12))


def of_two_devices(params):
    """500 steps in 20 s, without compiling and evaluations."""
    state, mesh = SimpleNamespace(params=params), make_mesh(2)
    return Result(state, 500, mesh, compile_seconds=9.0, train_seconds=30.0, evaluation_seconds=10.0)


def test_the_share_of_the_peak(monkeypatch):
    """Of two devices as fast as an H100 and a network with learned positions, which do not count."""
    monkeypatch.setitem(PEAKS, "cpu", PEAKS["NVIDIA H100 80GB HBM3"])
    transformer = TransformerConfig(embed_dim=384, num_layers=6, num_heads=6, position="learned", max_length=256)
    config = LanguageModelConfig(transformer=transformer, length=256, batch_size=64, dtype="bfloat16")
    network = config.language_model(65)
    assert network.dtype == jnp.bfloat16
    shapes = jax.eval_shape(lambda key: init_language_model(network, key), jax.random.key(0))
    found = language_model_speed(config, network, of_two_devices(shapes))
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes)) - 256 * 384
    assert found["iterations_per_second"] == 25
    expected = (6 * counted + 12 * 6 * 384 * 256) * 64 * 256 * 25 / (2 * 989e12)
    assert found["mfu"] == pytest.approx(expected)


def test_recurrent_networks_have_a_rate_alone():
    network = RecurrentLanguageModel(65, RNNConfig())
    config = LanguageModelConfig(network="recurrent", eval_batches=0)
    assert language_model_speed(config, network, of_two_devices({})) == {"iterations_per_second": 25, "mfu": None}
