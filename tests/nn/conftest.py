"""Small Transformers."""

import dataclasses

import jax
import numpy as np

from jaxai.nn.transformer import TransformerConfig
from tests.ops.oracle import compiled

TINY = TransformerConfig(embed_dim=16, num_layers=2, num_heads=4, init_std=0.2)


SHAPES = {
    "default": TINY,
    "GPT-2": dataclasses.replace(TINY, position="learned", max_length=12, activation="gelu_tanh"),
    "Llama": dataclasses.replace(
        TINY, norm="rms", bias=False, gated=True, activation="silu", num_kv_heads=2, tied=False
    ),
    "ReLU": dataclasses.replace(TINY, activation="relu", hidden_dim=24, num_kv_heads=1),
    "shared": dataclasses.replace(TINY, share_layers=True),
}


TOLERANCE = 1e-5  # float32; logits are about 1


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 11, shape).astype(np.int32)


def initialised(network, *inputs, key):
    """The network's parameters, biases and scales perturbed so that none is 0 or 1."""
    params, rng = compiled(network.init)(key, *inputs)["params"], np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), jax.tree.map(np.asarray, params))
