"""Communication volume of a training step against its minimum, and a prediction for many GPUs.

    python benchmarks/scaling.py            # 10 minutes

For the classifier of the Keras baseline, a Transformer and the digit GAN (with and without R1 and R2), the step is
compiled for 1, 2, 4 and 8 devices, with replicated and sharded parameters; the collectives and their bytes are read
from the compiled program. The minimum with data parallelism is one all-reduce of gradients and metrics; with sharded
parameters also one all-gather of the parameters per change. Then the classifier trains on 1, 2, 4 and 8 devices of one
process and on 1, 2 and 4 processes; with few cores this measures the cost of splitting a step, not a speed-up.
Finally the time of a step of a model of GPT-2 small's size on N GPUs is predicted with the formula

    seconds = FLOPs / (peak * efficiency) + 2 (N - 1) / N * bytes / link

for a fixed batch per GPU, without overlap: H100, 989 TFLOP/s in bfloat16 at an efficiency of 40 %, links of 450 GB/s
between the 8 GPUs of a node and of 50 GB/s per GPU between nodes. These are assumptions, not measurements. Writes JSON
to --out.
"""

import dataclasses
import json
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from timing import figure, load_experiment, spread, training_turns, write

from jaxai import cli
from jaxai.data.pipeline import endless
from jaxai.distributed import cluster
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.distributed.peaks import PEAKS
from jaxai.distributed.sharding import batch_sharding, state_sharding
from jaxai.errors import UserError
from jaxai.gan.step import apply
from jaxai.nn.cnn import ArticleCNN
from jaxai.nn.transformer import TransformerConfig
from jaxai.nn.transformer_models import LanguageModel
from jaxai.train.keys import Keys
from jaxai.train.optim import Adam, optimizer
from jaxai.train.supervised import cross_entropy, init_state, train_step
from jaxai.typing import PyTree

COUNTS, PROCESSES, BATCH, TIMED = (1, 2, 4, 8), (1, 2, 4), 64, 20
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
PEAK, EFFICIENCY, NODE, WITHIN, BETWEEN = PEAKS["NVIDIA H100 80GB HBM3"], 0.4, 8, 450e9, 50e9
GPUS = tuple(8 * 2**n for n in range(10))
Program = tuple[Callable[..., Any], Callable[[], PyTree], dict[str, np.ndarray]]
"""A step, a function that makes the first state, a batch."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark. The section ``train`` is for the processes that the benchmark starts."""

    section: tyro.conf.Positional[Literal["all", "train"]] = "all"
    out: Path = Path("runs/benchmarks/scaling")
    rounds: int = 5
    devices: int = 1
    coordinator: str = ""
    num_processes: int = 1
    process_id: int = 0


def main(config: Config) -> None:
    """Compile, train, predict, print, write JSON."""
    if config.section == "train":
        with cluster.distributed_session(config.coordinator, config.num_processes, config.process_id):
            cli.start_platform("cpu", config.devices)
            print(json.dumps(seconds_a_step(config)))
        return
    cli.start_platform("cpu", max(COUNTS))
    config.out.mkdir(parents=True, exist_ok=True)
    rows = [collectives(name, count, sharded) for name in PROGRAMS for sharded in (False, True) for count in COUNTS]
    for row in rows:
        print(json.dumps(row), flush=True)
    times = [timed(config, 1, count) for count in COUNTS] + [timed(config, count, 1) for count in PROCESSES[1:]]
    figures = [
        figure(f"{row['step']} on 8 devices, bytes over minimum", row["times_least"], "<=", 1.0)
        for row in rows
        if row["devices"] == 8 and not row["sharded"]
    ]
    found = {"collectives": rows, "times": times, "predicted": predicted(), "figures": figures}
    write(config.out / "scaling.json", found)
    print(table(rows, times, found["predicted"]))


def classifier() -> Program:
    """The classifier of the Keras baseline on random pixels."""
    network, tx = ArticleCNN(), optimizer(Adam(), decay_steps=1000)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
    batch = {"image": images, "label": rng.integers(0, 10, BATCH).astype(np.int32)}

    def loss_fn(params: PyTree, batch: dict[str, Any], key: Any) -> Any:
        return cross_entropy(apply(network, params, batch["image"]), batch["label"])

    def init() -> PyTree:
        params = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        return init_state(params, tx, jax.random.key(1))

    return partial(train_step, loss_fn=loss_fn, tx=tx), init, batch


def transformer() -> Program:
    """A language model on random tokens."""
    vocabulary, length = 96, 64
    network = LanguageModel(vocabulary, TransformerConfig(embed_dim=128, num_layers=4, num_heads=4))
    tx = optimizer(Adam(), decay_steps=1000)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (2, BATCH, length)).astype(np.int32)

    def loss_fn(params: PyTree, batch: dict[str, Any], key: Any) -> Any:
        logits, _ = network.apply({"params": params}, batch["input"])
        loss, metrics = cross_entropy(logits.reshape(-1, vocabulary), batch["target"].reshape(-1))
        return loss, metrics

    def init() -> PyTree:
        params = network.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        return init_state(params, tx, jax.random.key(1))

    return partial(train_step, loss_fn=loss_fn, tx=tx), init, {"input": tokens[0], "target": tokens[1]}


def gan(penalty: str) -> Program:
    """The digit GAN's step."""
    experiment = load_experiment("gan_mnist")
    preset = dataclasses.replace(experiment.PRESETS["default"], penalty=penalty, batch_size=BATCH)
    trainer = experiment.trainer(preset, *experiment.networks(preset))
    return trainer.step, partial(trainer.init, Keys(0)), {"image": np.zeros((BATCH, 28, 28, 1), np.uint8)}


PROGRAMS: dict[str, Callable[[], Program]] = {
    "classifier": classifier,
    "Transformer": transformer,
    "GAN without a penalty": partial(gan, "none"),
    "GAN with R1 and R2": partial(gan, "r1_r2"),
}


def collectives(name: str, count: int, sharded: bool) -> dict[str, Any]:
    """Compile a step for ``count`` devices; return its collectives, their bytes and the minimum."""
    step, init, batch = PROGRAMS[name]()
    mesh = make_mesh(count, batch_size=BATCH)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(init)
        shardings = state_sharding(shapes, mesh, shard_parameters=sharded)
        placed = jax.tree.map(described, shapes, shardings)
        rows = jax.tree.map(lambda x: described(x, batch_sharding(mesh)), batch)
        lowered = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)).lower(placed, rows)
        metrics = jax.eval_shape(step, shapes, batch)[1]
        found = communicated(lowered.compile().as_text() or "")
    least = 0 if count == 1 else least_bytes(shapes, shardings, len(metrics))
    total = sum(found["bytes"].values())
    return {
        "step": name,
        "devices": count,
        "sharded": sharded,
        **found,
        "least": least,
        "times_least": round(total / least, 4) if least else 1.0,
    }


def described(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def communicated(program: str) -> dict[str, dict[str, int]]:
    """The number of collectives in a compiled program and the bytes of their results, by kind."""
    counts, sizes = Counter(), Counter()
    for shapes, kind in re.findall(rf"= (\S.*?) ({KINDS})(?:-start)?\(", program):
        counts[kind] += 1
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            sizes[kind] += BYTES[dtype] * int(np.prod([int(size) for size in dims.split(",") if size]))
    return {"counts": dict(counts), "bytes": dict(sizes)}


def least_bytes(state: PyTree, shardings: PyTree, metrics: int) -> int:
    """The minimum: every gradient and metric (float32) once, each split parameter once per change, to gather it.

    A discriminator counts twice: it changes within a step, and the generator's update uses the new one.
    """
    total = 4 * metrics
    for name, gathered in {"params": 1, "generator": 1, "discriminator": 2}.items():
        if hasattr(state, name):
            leaves, places = (jax.tree.leaves(getattr(tree, name)) for tree in (state, shardings))
            for leaf, place in zip(leaves, places, strict=True):
                total += 4 * leaf.size * (1 + gathered * any(place.spec))
    return total


def seconds_a_step(config: Config) -> dict[str, Any]:
    """Milliseconds per step of the classifier's training in this process."""
    step, init, batch = classifier()
    own = processes(make_mesh(config.devices))
    count = BATCH // own["process_count"]
    rows = jax.tree.map(lambda x: x[own["process_index"] * count :][:count], batch)
    turn = training_turns(step, init, endless(lambda _: rows), TIMED, 1, devices=config.devices)
    turn(1)
    return spread([1000 * seconds / TIMED for seconds in turn(config.rounds)])


def timed(config: Config, count: int, devices: int) -> dict[str, Any]:
    """Milliseconds per step with ``count`` processes of ``devices`` devices, started as commands."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    jobs = []
    for index in range(count):
        words = [sys.executable, __file__, "train", "--devices", devices, "--rounds", config.rounds]
        if count > 1:
            words += ["--coordinator", address, "--num-processes", count, "--process-id", index]
        jobs.append(subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, text=True))
    said = [job.communicate()[0] for job in jobs]
    if any(job.returncode for job in jobs):
        raise UserError(f"{count} processes of {devices} devices failed, see above")
    row = {"processes": count, "devices_each": devices, "ms_a_step": json.loads(said[0].splitlines()[-1])}
    print(json.dumps(row), flush=True)
    return row


def predicted() -> list[dict[str, Any]]:
    """The formula's times per step of a Transformer of GPT-2 small's size, 16 x 1,024 tokens per GPU."""
    parameters, tokens = 124e6, 16 * 1024
    compute = 6 * parameters * tokens / (PEAK * EFFICIENCY)
    rows = []
    for count in GPUS:
        exchange = 2 * (count - 1) / count * 4 * parameters / (WITHIN if count <= NODE else BETWEEN)
        rows.append(
            {
                "gpus": count,
                "compute_ms": round(1000 * compute, 1),
                "exchange_ms": round(1000 * exchange, 1),
                "step_ms": round(1000 * (compute + exchange), 1),
                "efficiency": round(compute / (compute + exchange), 3),
            }
        )
    return rows


def table(rows: list[dict[str, Any]], times: list[dict[str, Any]], guesses: list[dict[str, Any]]) -> str:
    """Format the tables in Markdown."""
    lines = ["| step | devices | parameters | collectives | bytes | minimum | ratio |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["counts"].items()) or "none"
        place = "sharded" if row["sharded"] else "replicated"
        total = sum(row["bytes"].values())
        cells = (row["step"], row["devices"], place, kinds, f"{total:,}", f"{row['least']:,}", row["times_least"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| processes | devices per process | ms per step |", "|---|---|---|"]
    for row in times:
        ms = row["ms_a_step"]
        lines.append(f"| {row['processes']} | {row['devices_each']} | {ms['median']} ({ms['min']} to {ms['max']}) |")
    lines += ["", "| GPUs | compute, ms | communication, ms | step, ms | share of compute |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(str(value) for value in row.values())} |" for row in guesses]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
