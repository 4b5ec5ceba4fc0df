"""A training step of the Keras baseline's classifier against Keras and PyTorch, optimiser and input included.

    python benchmarks/train_step.py --peers PYTHON                   # batch 64 and 256, 6 minutes

PYTHON is the interpreter of a separate environment (Python 3.11, ``pip install -r benchmarks/peers.txt``). Run it on
an otherwise idle machine. First every library gets the same weights and one batch: loss and weights after a step of
Adam must agree. Then the libraries train in turns on images in memory: Keras by ``fit``, PyTorch by a loop with fused
Adam and channels last, eager and compiled, jaxai by ``jaxai.train``. Writes JSON to --out.
"""

import dataclasses
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import Ask, Turn, check_interpreter, figure, peer_libraries, race, ratio, spread, training_turns, write

from jaxai import cli
from jaxai.data import ImageDataset
from jaxai.data.pipeline import batches
from jaxai.errors import UserError
from jaxai.nn.cnn import ArticleCNN
from jaxai.train.optim import Adam, optimizer
from jaxai.train.supervised import cross_entropy, init_state, mean_gradient, train_step

PEER = Path(__file__).parent / "peers" / "cnn.py"
LIBRARIES = ("keras", "torch", "torch_compiled")
ADAM = Adam()
STEPS_PER_CALL = 8  # as in experiments/cnn_cifar10.py


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    peers: Path | None = None
    """An interpreter that has Keras and PyTorch; by default only jaxai is measured."""
    out: Path = Path("runs/benchmarks/train_step")
    batch_sizes: tuple[int, ...] = (64, 256)
    images: int = 25_600
    """Images per turn. With 6,400, the start of `fit` takes half of Keras's time."""
    rounds: int = 3
    """Turns per library."""
    threads: int = os.cpu_count() or 1
    """Threads that the peers may use."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.threads < 1:
            raise UserError(f"--rounds and --threads must be at least 1, got {self.rounds} and {self.threads}")
        if not self.batch_sizes or min(self.batch_sizes) < 1 or max(self.batch_sizes) > self.images:
            raise UserError(f"--batch-sizes must be 1 to {self.images} (--images), got {self.batch_sizes}")


def main(config: Config) -> None:
    """Check, measure, print, write JSON."""
    check_interpreter(config.peers, "benchmarks/train_step.py")
    cli.start_platform("cpu", 0)
    config.out.mkdir(parents=True, exist_ok=True)
    with peer_libraries(config.peers, PEER, LIBRARIES, config.threads) as asks:
        differences = {library: difference(ask) for library, ask in asks.items()}
        print(json.dumps(differences), flush=True)
        rows = [speed(config, batch_size, asks) for batch_size in config.batch_sizes]
    figures = [
        figure(f"batch {row['batch_size']}, times {name}", row["times_faster"][name]["median"], ">=", 1.4)
        for row in rows
        for name in row["times_faster"]
    ]
    write(config.out / "train_step.json", {"largest_difference": differences, "rows": rows, "figures": figures})


def random_data(count: int) -> ImageDataset:
    """Random pixels and labels with CIFAR-10's shapes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return ImageDataset("random", "train", images, rng.integers(0, 10, count).astype(np.int32), 10, "random", False, "")


def loss_fn(params: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """The loss of experiments/cnn_cifar10.py."""
    logits: Any = ArticleCNN().apply({"params": params}, batch["image"].astype(jnp.float32) / 255)
    return cross_entropy(logits, batch["label"])


def first_state() -> Any:
    """Parameters and optimiser before the first step."""
    params = ArticleCNN().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    return init_state(params, optimizer(ADAM, 10**6), jax.random.key(1))


STEP = partial(train_step, loss_fn=loss_fn, tx=optimizer(ADAM, 10**6))


def difference(ask: Ask) -> float:
    """The relative difference of a peer's loss from ours. UserError if loss or weights after a step differ."""
    data, state = random_data(64), first_state()
    batch = {"image": data.images, "label": data.labels}
    after, metrics = jax.jit(STEP)(state, batch)
    grads = jax.jit(jax.grad(lambda params: loss_fn(params, batch, state.key)[0]))(state.params)
    before, after, grads = map(flat, (state.params, after.params, grads))
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.npz") for name in ("inputs", "outputs")}
        images = data.images.astype(np.float32) / 255
        np.savez(paths["inputs"], images=images, labels=data.labels.astype(np.int64), **before)
        ask(ask="check", **paths)
        with np.load(paths["outputs"]) as saved:
            loss = abs(float(saved["loss"]) / float(metrics["loss"]) - 1)
            theirs = {name: saved[name] for name in before}
    # Adam's first step is +-1e-3 where the gradient is large relative to epsilon / sqrt(0.001), 3e-6 in Keras.
    clear = {name: np.abs(grad) > 1e-3 for name, grad in grads.items()}
    apart = max(float(np.abs(theirs[name] - after[name])[clear[name]].max(initial=0)) for name in before)
    if loss > 1e-5 or apart > 2e-5:
        raise UserError(f"a peer's step differs from ours: loss by {loss:.1e}, weights by {apart:.1e}")
    return loss


def flat(params: dict[str, dict[str, jax.Array]]) -> dict[str, Any]:
    """Flatten parameters to the peers' names."""
    return {f"{layer}.{part}": np.asarray(x) for layer, parts in params.items() for part, x in parts.items()}


def speed(config: Config, batch_size: int, asks: dict[str, Ask]) -> dict[str, Any]:
    """Examples/s of each library."""
    steps = config.images // batch_size
    contenders = {"jaxai": ours(batch_size, steps)}
    for library, ask in asks.items():
        request = partial(ask, ask="time", batch=batch_size, steps=steps)
        contenders[library] = lambda repeats, request=request: [request()["seconds"] for _ in range(repeats)]
    seconds = race(contenders, config.rounds)
    count = steps * batch_size
    row = {
        "batch_size": batch_size,
        "steps": steps,
        "examples_per_second": {name: spread([count / x for x in values]) for name, values in seconds.items()},
        "times_faster": {name: ratio(seconds[name], seconds["jaxai"]) for name in asks},
    }
    print(json.dumps(row), flush=True)
    return row


def ours(batch_size: int, steps: int) -> Turn:
    """Turns of ``steps`` steps including input; large batches are split into parts of 64."""
    accumulation_steps = max(1, batch_size // 64) if batch_size % 64 == 0 else 1
    step = partial(STEP, gradient=partial(mean_gradient, accumulation_steps=accumulation_steps))
    stream = batches(random_data(steps * batch_size), batch_size, seed=0)
    return training_turns(step, first_state, stream, steps, STEPS_PER_CALL)


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
