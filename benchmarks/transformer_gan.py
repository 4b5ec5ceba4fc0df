"""A training step of two Transformers with R1 and R2 on 64x64 tokens within 24 GiB of memory.

    python benchmarks/transformer_gan.py        # 2 minutes

The penalties' gradients are second derivatives of attention. The same step is compiled with `jaxai.attention`, which
needs O(T) memory for them, and with `jax.nn`'s dense attention, and run in a process with this memory limit. Images of
256x256 pixels, patches of 4x4, two blocks of width 64 with four heads in each network, batch 2. Writes JSON to --out.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from timing import figure, limited_steps, with_either_attention, write

from jaxai import cli
from jaxai.gan.losses import LOSSES
from jaxai.gan.penalties import r1_r2
from jaxai.gan.state import init_fn, init_gan_state
from jaxai.gan.step import apply, from_noise, gan_step
from jaxai.gan.transformer_networks import TransformerDiscriminator, TransformerGenerator
from jaxai.nn.transformer import TransformerConfig
from jaxai.train.keys import Keys
from jaxai.train.optim import Adam, optimizer

IMAGE, PATCH, LATENT, BATCH, STEPS, GIB = (256, 256, 3), 4, 64, 2, 3, 24
SHAPE = TransformerConfig(
    embed_dim=64, num_layers=2, num_heads=4, hidden_dim=128, position="learned", norm="rms", init_std=0.05
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    out: Path = Path("runs/benchmarks/transformer_gan")


def main(config: Config) -> None:
    """Measure, print, write JSON."""
    cli.start_platform("cpu", 0)
    config.out.mkdir(parents=True, exist_ok=True)
    found = with_either_attention(steps)
    figures = [
        figure("our peak memory, GiB", found["jaxai"]["peak_gib"], "<=", GIB),
        figure("temporaries of dense attention, GiB", found["jax.nn"]["temporaries_gib"], ">=", GIB),
    ]
    write(config.out / "step.json", {"tokens": 64 * 64, "gib": GIB, **found, "figures": figures})


def steps(attention: str) -> dict[str, Any]:
    """Take some steps with limited memory; return the measurements, or the error."""
    generator = TransformerGenerator(SHAPE, IMAGE, PATCH, hidden=64)
    discriminator = TransformerDiscriminator(SHAPE, PATCH)
    tx = optimizer(Adam(learning_rate=1e-3, beta1=0.0), decay_steps=1)
    step = partial(
        gan_step,
        generate=from_noise(generator, LATENT, BATCH),
        discriminate=partial(apply, discriminator),
        loss=LOSSES["relativistic"],
        penalty=(r1_r2, lambda step: jnp.ones(())),
        txs=(tx, tx),
    )
    first = init_fn(generator, jnp.zeros((1, LATENT))), init_fn(discriminator, jnp.zeros((1, *IMAGE)))
    init = partial(init_gan_state, Keys(0), *first, txs=(tx, tx), keep_ema=False)
    real = jax.random.uniform(jax.random.key(1), (BATCH, *IMAGE), minval=-1.0)

    def losses(metrics: dict[str, jax.Array]) -> list[float]:
        return [round(float(metrics[f"{name}_loss"]), 4) for name in ("discriminator", "generator")]

    return limited_steps(step, init, [real] * STEPS, losses, attention=attention, gib=GIB)


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
