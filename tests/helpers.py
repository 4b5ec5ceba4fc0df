"""Small parts that several tests share."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxai.gan.losses import LOSSES, Loss
from jaxai.gan.penalties import r1_r2
from jaxai.gan.state import GanState, init_fn, init_gan_state
from jaxai.gan.step import apply, from_noise, gan_step

SHAPE = (4, 4, 1)


class TinyGenerator(nn.Module):
    @nn.compact
    def __call__(self, latents):
        x = nn.relu(nn.Dense(128)(latents))
        return nn.Dense(16)(x).reshape(-1, *SHAPE)


class TinyDiscriminator(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.leaky_relu(nn.Dense(256)(images.reshape(len(images), -1)), 0.2)
        return nn.Dense(1)(x)[:, 0]


class Blobs:
    """An endless iterator over batches of random images whose position can be saved, like grain's."""

    def __init__(self, batch_size: int = 8, seed: int = 0) -> None:
        self.position, self.batch_size, self.seed = 0, batch_size, seed

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, self.position))
        self.position += 1
        return {"image": rng.normal(size=(self.batch_size, *SHAPE)).astype(np.float32)}

    def get_state(self) -> dict[str, Any]:
        return {"position": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def tiny_gan(
    *,
    loss: str = "relativistic",
    penalty: float = 1.0,
    learning_rate: float = 1e-3,
    half_life: float = 100.0,
) -> tuple[Callable[..., Any], Callable[[], GanState]]:
    """(step, init) of a GAN of two small dense networks."""
    tx = optax.adam(learning_rate, 0.0, 0.99)
    weighted = (r1_r2, lambda step: jnp.asarray(penalty)) if penalty else None

    def step(state, batch):
        return gan_step(
            state,
            batch["image"],
            generate=from_noise(TinyGenerator(), 8, len(batch["image"])),
            discriminate=partial(apply, TinyDiscriminator()),
            loss=LOSSES[loss],
            penalty=weighted,
            ema_half_life=half_life,
            txs=(tx, tx),
        )

    first = init_fn(TinyGenerator(), jnp.zeros((1, 8))), init_fn(TinyDiscriminator(), jnp.zeros((2, *SHAPE)))
    return step, partial(init_gan_state, jax.random.key(0), *first, txs=(tx, tx), keep_ema=half_life > 0)


def generator_loss(loss: Loss, real: jax.Array, fake: jax.Array) -> jax.Array:
    """The generator's loss of a kind that looks at real examples or not."""
    return loss.generator(real, fake) if loss.relativistic else loss.generator(fake)


def hex_losses(path: Path) -> list[tuple[int, str, str]]:
    """Step and the exact losses of every line of a metrics.jsonl."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        (line["step"], line["discriminator_loss_hex"], line["generator_loss_hex"])
        for line in lines
        if "generator_loss_hex" in line
    ]


def same_bits(left: Any, right: Any) -> bool:
    """Whether two states are equal bit for bit."""

    def data(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.asarray(data(a)).tobytes() == np.asarray(data(b)).tobytes() for a, b in pairs)
