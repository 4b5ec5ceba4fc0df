"""Small parts that several tests share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxai.config import Training
from jaxai.data import ImageDataset
from jaxai.data.pipeline import batches
from jaxai.distributed.mesh import make_mesh
from jaxai.gan.losses import LOSSES, Loss
from jaxai.gan.penalties import r1_r2
from jaxai.gan.state import GanState, init_fn, init_gan_state
from jaxai.gan.step import apply, from_noise, gan_step
from jaxai.run.checkpoint import Checkpoints
from jaxai.run.folder import Run
from jaxai.train.keys import Keys
from jaxai.train.loop import fit
from jaxai.train.supervised import cross_entropy, init_state, train_step

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
    return step, partial(init_gan_state, Keys(0), *first, txs=(tx, tx), keep_ema=half_life > 0)


def normal(*shape: int) -> np.ndarray:
    """Normal numbers, float32, the same at each call."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


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


LABELS = np.array([0, 0, 0, 1, 1, 2])


PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]
)


def classified(seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A mediocre classifier on labels in which every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    logits = rng.standard_normal((n, classes)) + np.eye(classes)[labels]
    odds = np.exp(logits)
    return labels, odds / odds.sum(1, keepdims=True)


BAD_PROBABILITIES = [
    (PROBABILITIES[:, 0], r"probabilities: shape \[6\], give \[N, C >= 2\]"),
    (PROBABILITIES[:, :1], r"of a single p give \[1 - p, p\]"),
    (np.ones((6, 3), np.int64), r"probabilities: int64\[6, 3\], give floating-point"),
    (np.where(PROBABILITIES > 0.75, np.nan, PROBABILITIES), "probabilities: NaN or infinity"),
    (np.where(PROBABILITIES > 0.75, np.inf, PROBABILITIES), "probabilities: NaN or infinity"),
    (np.log(PROBABILITIES), "probabilities: row 0 has the sum .* of logits give jax.nn.softmax"),
    (np.eye(3)[LABELS] * 2 - 1 / 3, "probabilities: row 0 .* minimum -0.3333"),  # the sums are 1
    (PROBABILITIES * 1.02, "probabilities: row 0 has the sum 1.02"),
    (PROBABILITIES[:5], r"labels: 6, probabilities: shape \[5, 3\], give one row for each label"),
    (PROBABILITIES[:, :2] / PROBABILITIES[:, :2].sum(1, keepdims=True), r"labels: values 0 ... 2, give 0 ... 1"),
]


BAD_LABELS = [
    (LABELS - 1, r"labels: values -1 ... 1, give 0 ... 2"),
    (LABELS + 1, r"labels: values 1 ... 3, give 0 ... 2"),
    (LABELS.astype(np.float32), r"labels: float32\[6\], give integers of shape \[N\]"),
    (LABELS > 0, r"labels: bool\[6\], give integers"),
    (np.eye(3, dtype=np.int32)[LABELS], r"labels: int32\[6, 3\], give integers .* one-hot rows take argmax"),
]


EMPTY_LABELS = (LABELS[:0], PROBABILITIES[:0], "labels: none of them")


BAD_CLASSIFICATIONS = [(LABELS, p, m) for p, m in BAD_PROBABILITIES] + [(y, PROBABILITIES, m) for y, m in BAD_LABELS]
BAD_CLASSIFICATIONS.append(EMPTY_LABELS)


def run_main(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command whose main has this body, in a process of its own."""
    source = f"""
import jax
from jaxai import cli
from jaxai.config import Common
def main(config):
    {body}
cli.run(main, {{"default": Common()}}, "A test.")
"""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


SETUPS = [
    pytest.param({"devices": 1}, id="one"),
    pytest.param({"devices": 4}, id="four"),
    pytest.param({"devices": 4, "shard_parameters": True}, id="four-sharded"),
    pytest.param({"mesh": "data=2,model=2"}, id="two-by-two"),
    pytest.param({"steps_per_call": 4}, id="four-steps-a-call"),
    pytest.param({"devices": 4, "shard_parameters": True, "steps_per_call": 4}, id="four-sharded-steps"),
]


def train(folder: Path, steps: int, *, every=(), checkpoint_every=1000, gan=None, **setup):
    folder.mkdir(exist_ok=True)
    step, init = gan or tiny_gan()
    own = {"every": every, "steps_per_call": setup.pop("steps_per_call", 1)}
    mesh = make_mesh(setup.pop("devices", 1), shape=setup.get("mesh", ""))
    batches = setup.pop("batches", None) or Blobs()
    config = setup.pop("kind", Training)(steps=steps, checkpoint_every=checkpoint_every, **setup)
    return fit(step, init, batches, config, run=Run(folder), mesh=mesh, **own)


def images_run():
    """(step, init, batches) of a linear model on 50 images in memory."""
    rng, tx = np.random.default_rng(0), optax.adam(1e-2)
    images, labels = rng.integers(0, 256, (50, 4, 4, 1), np.uint8), rng.integers(0, 3, 50).astype(np.int32)
    data = ImageDataset("numbers", "train", images, labels, 3, "made up", False, "0" * 16)

    def loss_fn(params, batch, key):
        pixels = batch["image"].reshape(len(batch["image"]), -1) / 255.0
        flip = jnp.where(batch["epoch"] % 2 == 0, 1.0, -1.0)[:, None]
        return cross_entropy(flip * pixels @ params["weights"], batch["label"])

    def init():
        return init_state({"weights": jnp.zeros((16, 3))}, tx, jax.random.key(0))

    return partial(train_step, loss_fn=loss_fn, tx=tx), init, partial(batches, data, 8, seed=0)


def saved_steps(monkeypatch) -> list[int]:
    """Of which steps checkpoints are written from now on."""
    saved, write = [], Checkpoints._write

    def note(self, step, *arguments):
        saved.append(step)
        write(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "_write", note)
    return saved


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
