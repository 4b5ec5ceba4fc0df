"""The digit GAN against the Keras baseline, the program of an introductory article on GANs.

    python benchmarks/gan_mnist.py speed --peers PYTHON --data-dir DIR      # examples/s in turns, 3 minutes
    python benchmarks/gan_mnist.py quality --peers PYTHON --data-dir DIR    # MNIST-FD after the same time, 40 minutes

PYTHON is the interpreter of a separate environment (Python 3.11, ``pip install -r benchmarks/peers.txt``); DIR holds
the four official MNIST files. Run it on an otherwise idle machine. Writes JSON and a plot to --out.

``speed`` first checks that both build the same networks: with Keras's initial weights, ours must give Keras's images
and logits. A step processes 32 real images in each program: Keras updates the discriminator twice (real, generated) and
the generator once on fresh noise; jaxai updates each network once, the discriminator on the joint batch, the generator
on the images that the discriminator's update used.

``quality`` trains preset ``default`` and gives Keras as many seconds of pure training as jaxai took with compilation;
finished runs under --out are reused.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure
from timing import machine, spread

from jaxai import cli
from jaxai.data import load
from jaxai.data.pipeline import batches
from jaxai.errors import MissingFileError, UserError
from jaxai.gan.losses import LOSSES
from jaxai.gan.networks import ArticleDiscriminator, ArticleGenerator
from jaxai.gan.state import init_fn, init_gan_state
from jaxai.gan.step import apply, from_noise, gan_step
from jaxai.metrics.generation import evaluate_digits, evaluation_size
from jaxai.ops.pixels import to_signed
from jaxai.train.keys import Keys
from jaxai.train.optim import Adam, optimizer

REPOSITORY = Path(__file__).parent.parent
PEER = REPOSITORY / "benchmarks" / "peers" / "keras_gan_mnist.py"
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    what: tyro.conf.Positional[Literal["speed", "quality"]]
    peers: Path
    """An interpreter that has Keras and TensorFlow."""
    data_dir: Path
    """A folder with the four official MNIST files."""
    out: Path = Path("runs/benchmarks/gan_mnist")
    rounds: int = 15
    """speed: turns per program."""
    turn: int = 20
    """speed: steps per turn."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """quality: one run of each program per seed."""


def main(config: Config) -> None:
    """Compare, print, write JSON and a plot."""
    for path in (config.peers, config.data_dir):
        if not path.exists():
            raise MissingFileError(f"{path} does not exist: see the head of benchmarks/gan_mnist.py")
    cli.start_platform("cpu", 0)
    config.out.mkdir(parents=True, exist_ok=True)
    result = {"speed": speed, "quality": quality}[config.what](config)
    result |= {"date": str(date.today()), "machine": machine(), "jax": version("jax")}
    path = config.out / f"{config.what}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{json.dumps(result, indent=2)}\n{path}")


def speed(config: Config) -> dict[str, Any]:
    """Examples/s of both programs in alternating turns."""
    initial = config.out / "keras_initial.npz"
    command = [str(config.peers), str(PEER), "--data-dir", str(config.data_dir), "--turns", str(config.turn)]
    with subprocess.Popen(
        [*command, "--initial", str(initial)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keras:
        assert keras.stdin
        assert keras.stdout
        keras.stdout.readline()  # ready
        difference = largest_difference(initial)
        ours = Article(config.data_dir)
        ours.turn(config.turn)
        rates: dict[str, list[float]] = {"jaxai": [], "keras": []}
        line: dict[str, Any] = {}
        for _ in range(config.rounds):
            rates["jaxai"].append(ours.turn(config.turn))
            keras.stdin.write("\n")
            keras.stdin.flush()
            line = json.loads(keras.stdout.readline())
            rates["keras"].append(line["examples_per_second"])
        keras.stdin.close()
    ratios = [a / b for a, b in zip(rates["jaxai"], rates["keras"], strict=True)]
    plot(config.out / "speed.png", rates, "examples/s, one point per turn")
    return {
        "largest_difference": difference,
        "compile_seconds": round(ours.compile_seconds, 2),
        "examples_per_second": {name: spread(values) for name, values in rates.items()},
        "ratio": spread(ratios),
        "keras_versions": {name: line[name] for name in ("keras", "tensorflow", "python")},
    }


class Article:
    """The training of preset ``article``, step by step."""

    def __init__(self, data_dir: Path) -> None:
        tx = optimizer(Adam(learning_rate=1e-4), decay_steps=1)
        generator, discriminator = ArticleGenerator(), ArticleDiscriminator()
        how = {"generate": from_noise(generator, 100, BATCH), "discriminate": partial(apply, discriminator)}
        self._batches = batches(load("mnist", "train", data_dir=data_dir), BATCH, seed=0)

        def step(state: Any, batch: dict[str, jax.Array]) -> Any:
            return gan_step(state, to_signed(batch["image"]), loss=LOSSES["non_saturating"], txs=(tx, tx), **how)

        first = init_fn(generator, jnp.zeros((1, 100))), init_fn(discriminator, jnp.zeros((2, 28, 28, 1)))
        init = partial(init_gan_state, Keys(0), *first, txs=(tx, tx), keep_ema=False)
        self._state = jax.jit(init)()
        before = time.perf_counter()
        self._step = jax.jit(step, donate_argnums=0).lower(self._state, next(self._batches)).compile()
        self.compile_seconds = time.perf_counter() - before

    def turn(self, steps: int) -> float:
        """Examples/s over ``steps`` steps."""
        before = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, next(self._batches))
            metrics["generator_loss"].block_until_ready()
        jax.block_until_ready(self._state)
        return steps * BATCH / (time.perf_counter() - before)


def largest_difference(path: Path) -> float:
    """The largest relative difference of images and logits with Keras's weights. UserError above 1e-4."""
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in saved.files}
    generator = parameters(
        [arrays[f"generator_{i}"] for i in range(14)], ["Dense"] * 4 + ["ConvTranspose"] * 2 + ["Conv"]
    )
    discriminator = parameters([arrays[f"discriminator_{i}"] for i in range(8)], ["Conv"] * 2 + ["Dense"] * 2)
    images = ArticleGenerator().apply({"params": generator}, arrays["noise"])
    logits = ArticleDiscriminator().apply({"params": discriminator}, arrays["images"])
    pairs = [(images, arrays["images"]), (logits, arrays["logits"][:, 0])]
    difference = max(float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in pairs)
    if difference > 1e-4:  # float32 sums of up to 50,176 products in another order differ by some 1e-6
        raise UserError(f"{path}: our networks differ from Keras's by {difference:.1e} with the same weights")
    return difference


def parameters(weights: Sequence[np.ndarray], layers: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Convert Keras's kernels and biases, layer by layer, to our modules' names and layout."""
    params: dict[str, dict[str, np.ndarray]] = {}
    for kernel, bias, kind in zip(weights[::2], weights[1::2], layers, strict=True):
        if kind == "ConvTranspose":  # Keras stores the kernel of the transposed convolution's adjoint
            kernel = kernel[::-1, ::-1].swapaxes(2, 3)
        number = sum(name.startswith(f"{kind}_") for name in params)
        params[f"{kind}_{number}"] = {"kernel": kernel, "bias": bias}
    return params


def quality(config: Config) -> dict[str, Any]:
    """Scores of preset ``default`` and of the Keras baseline after the same time, once per seed."""
    train, test = (load("mnist", split, data_dir=config.data_dir) for split in ("train", "test"))
    rows = []
    for seed in config.seeds:
        ours = run_default(config, seed)
        seconds = ours["compile_seconds"] + ours["train_seconds"]
        samples = run_keras(config, seed, seconds, evaluation_size(train.images, test.images))
        theirs = evaluate_digits(samples, train.images, test.images)
        row = {"seed": seed, "seconds": seconds, "jaxai": scores(ours), "keras": scores(theirs)}
        row["fd_ratio"] = row["jaxai"]["mnist_fd"] / row["keras"]["mnist_fd"]
        print(json.dumps(row), flush=True)
        rows.append(row)
    distances = {name: [row[name]["mnist_fd"] for row in rows] for name in ("jaxai", "keras")}
    plot(config.out / "quality.png", distances, "MNIST-FD after the same time, one point per seed", logarithmic=True)
    return {"runs": rows, "fd_ratio": spread([row["fd_ratio"] for row in rows])}


def run_default(config: Config, seed: int) -> dict[str, Any]:
    """The summary of ``experiments/gan_mnist.py`` with this seed."""
    workdir = config.out / f"default_seed{seed}"
    script = REPOSITORY / "experiments" / "gan_mnist.py"
    options = {"--seed": str(seed), "--data-dir": str(config.data_dir), "--workdir": str(workdir)}
    arguments = [part for option in options.items() for part in option]
    subprocess.run([sys.executable, str(script), *arguments], check=True)
    return json.loads((workdir / "summary.json").read_text())


def run_keras(config: Config, seed: int, seconds: float, count: int) -> np.ndarray:
    """Samples of the Keras baseline after ``seconds`` of training, uint8 [count, 28, 28, 1]."""
    path = config.out / f"keras_seed{seed}_{seconds:.0f}s.npz"
    if not path.exists():
        options = {"--seconds": f"{seconds:.0f}", "--samples": str(count), "--seed": str(seed), "--out": str(path)}
        arguments = [part for option in options.items() for part in option]
        command = [str(config.peers), str(PEER), "--data-dir", str(config.data_dir), *arguments]
        subprocess.run(command, check=True)
    with np.load(path) as saved:
        return saved["images"]


def scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The scores to compare."""
    names = ["mnist_fd", "mnist_fd_floor", "precision", "recall", "density", "coverage", "histogram_kl", "digits"]
    return {name: summary[name] for name in names}


def plot(path: Path, series: Mapping[str, Sequence[float]], label: str, *, logarithmic: bool = False) -> None:
    """Plot each program's values as points."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for name, values in series.items():
        axes.plot(range(1, len(values) + 1), values, "o-", label=name)
    axes.set_ylabel(label)
    axes.set_yscale("log" if logarithmic else "linear")
    axes.set_ylim(bottom=None if logarithmic else 0)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    cli.show_messages()
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
