"""The small language model of nanoGPT's documented CPU command, against the same network and training in PyTorch.

    python benchmarks/text_generation.py step --peers PYTHON                # ms per iteration, 2 minutes
    python benchmarks/text_generation.py run --peers PYTHON --text FILE     # whole runs, three seeds, 16 minutes
    python benchmarks/text_generation.py sampling                           # tokens/s with and without the cache
    python benchmarks/text_generation.py context                            # 16,384 characters in 24 GiB, 10 minutes

PYTHON is the interpreter of a separate environment (Python 3.11, ``pip install -r benchmarks/peers.txt``), FILE a text,
such as nanoGPT's. Run it on an otherwise idle machine. ``step`` first compares the losses of 20 steps from the same
weights on the same batches. ``run`` times whole processes, ours with an empty compilation cache, so the time includes
compilation. ``context`` trains the same network on windows of 16,384 characters in a process limited to 24 GiB, with
`jaxai.attention` and with `jax.nn`'s dense attention. Each section writes JSON to --out.
"""

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from timing import (
    Turn,
    check_interpreter,
    figure,
    limited_steps,
    load_experiment,
    losses_apart,
    peer_process,
    race,
    ratio,
    spread,
    training_turns,
    with_either_attention,
    write,
)

from jaxai import cli
from jaxai.data.text import characters, load_text, windows
from jaxai.errors import MissingFileError, UserError
from jaxai.nn import LanguageModel, init_cache
from jaxai.nn.decoding import Sampling, advance, generate
from jaxai.train import TrainState, init_state, next_token_loss, optimizer, train_step

REPOSITORY = Path(__file__).parent.parent
OURS = REPOSITORY / "experiments" / "text_generation.py"
PEER = REPOSITORY / "benchmarks" / "peers" / "torch_gpt.py"
PRESETS = load_experiment("text_generation").PRESETS
PRESET = PRESETS["nanogpt_cpu"]
VOCABULARY = 65
NETWORK = LanguageModel(VOCABULARY, PRESET.transformer)
CHECKED, TIMED = 20, 20  # steps
CONTEXT, CONTEXT_STEPS, CONTEXT_GIB = 16_384, 10, 24


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    section: tyro.conf.Positional[Literal["step", "run", "sampling", "context"]]
    peers: Path | None = None
    """An interpreter that has PyTorch."""
    text: Path | None = None
    """The text for ``run`` and ``context``; the default for ``context`` is the embedded plays."""
    out: Path = Path("runs/benchmarks/text_generation")
    seeds: tuple[int, ...] = (0, 1, 2)
    """run: one run of each program per seed."""
    rounds: int = 9
    """Turns per program in the sections step and sampling."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.seeds:
            raise UserError(f"--rounds and --seeds need at least one, got {self.rounds} and {self.seeds}")
        if self.section == "run" and not (self.peers and self.text):
            raise UserError("run needs --peers PYTHON and --text FILE")
        if self.text and not self.text.is_file():
            raise MissingFileError(f"--text {self.text} is not a file")


def main(config: Config) -> None:
    """Check, measure, print, write JSON."""
    check_interpreter(config.peers, "benchmarks/text_generation.py")
    cli.start_platform("cpu", 0)
    config.out.mkdir(parents=True, exist_ok=True)
    result = {"step": step, "run": whole_runs, "sampling": sampling, "context": context}[config.section](config)
    write(config.out / f"{config.section}.json", result)


def first_state(network: LanguageModel = NETWORK) -> TrainState:
    """The training state before the first step."""
    params = network.init(jax.random.key(0), jnp.zeros((1, PRESET.length), jnp.int32))["params"]
    return init_state(params, TX, jax.random.key(1))


TX = optimizer(PRESET.optimizer, PRESET.decay_steps)
STEP = partial(train_step, loss_fn=partial(next_token_loss, NETWORK), tx=TX)


def random_windows() -> Any:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 1_000_000)
    return windows(ids, PRESET.batch_size, PRESET.length, seed=0)


def step(config: Config) -> dict[str, Any]:
    """Compare the losses of the first steps, then measure ms per iteration with input and optimiser."""
    with peer_process(config.peers, PEER) as ask:
        contenders = {"jaxai": training_turns(STEP, first_state, random_windows(), TIMED, PRESET.steps_per_call)}
        row: dict[str, Any] = {}
        if ask:
            batches = random_windows()
            _, apart = losses_apart(STEP, first_state(), [next(batches) for _ in range(CHECKED)], ask)
            if not apart <= 1e-4:
                raise UserError(f"losses of {CHECKED} steps differ by {apart:.1e}: the programs are not the same")
            row["largest_difference"] = apart
            contenders["torch"] = lambda repeats: [ask(ask="time", steps=TIMED)["seconds"] for _ in range(repeats)]
        seconds = race(contenders, config.rounds)
    row["ms_an_iteration"] = {name: spread([1000 / TIMED * x for x in values]) for name, values in seconds.items()}
    figures = []
    if ask:
        row["times_faster"] = ratio(seconds["torch"], seconds["jaxai"])
        figures = [figure("iteration, times faster than PyTorch", row["times_faster"]["median"], ">=", 2.5)]
    return row | {"figures": figures}


def whole_runs(config: Config) -> dict[str, Any]:
    """Seconds and validation loss of whole runs of each program, in alternation."""
    assert config.peers
    rows = []
    for seed in config.seeds:
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, OURS, "--text", config.text, "--workdir", f"{folder}/run", "--seed", seed]
            cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
            mine = timed([*line, "--platform", "cpu"], cache)
        peer = timed([config.peers, PEER, "--train", config.text, "--seed", seed, "--threads", os.cpu_count() or 1], {})
        rows.append({"seed": seed, "jaxai": mine, "torch": peer})
        print(json.dumps(rows[-1]), flush=True)
    seconds = {name: [row[name]["seconds"] for row in rows] for name in ("jaxai", "torch")}
    losses = {name: [row[name]["validation_loss"] for row in rows] for name in seconds}
    faster = ratio(seconds["torch"], seconds["jaxai"])
    figures = [
        figure("validation loss, mean of the seeds", statistics.mean(losses["jaxai"]), "<=", 1.88),
        figure("whole run, times faster than PyTorch", faster["median"], ">=", 2.5),
    ]
    means = {name: round(statistics.mean(values), 4) for name, values in losses.items()}
    return {"rows": rows, "times_faster": faster, "mean_validation_loss": means, "figures": figures}


def timed(line: list[Any], variables: dict[str, str]) -> dict[str, float]:
    """The seconds of a program and the validation loss that it prints."""
    before = time.perf_counter()
    job = subprocess.run([str(part) for part in line], capture_output=True, text=True, env={**os.environ, **variables})
    seconds = round(time.perf_counter() - before, 2)
    said = re.search(r"^validation loss ([\d.]+)", job.stdout, re.MULTILINE)
    if job.returncode or not said:
        raise UserError(f"{line[1]} failed: {(job.stderr.strip().splitlines() or ['no message'])[-1]}")
    return {"seconds": seconds, "validation_loss": float(said[1])}


def sampling(config: Config) -> dict[str, Any]:
    """Tokens/s for the last 16 tokens of 256, with the cache and by recomputing the whole prefix."""
    transformer = PRESETS["nanogpt"].transformer
    network = LanguageModel(VOCABULARY, transformer)
    prompt = np.random.default_rng(0).integers(0, VOCABULARY, (1, 240)).astype(np.int32)
    params = jax.jit(network.init)(jax.random.key(0), prompt)["params"]
    key, greedy = jax.random.key(1), Sampling(temperature=0)
    whole = jax.jit(lambda params, tokens: network.apply({"params": params}, tokens)[0])
    going_on = partial(advance, network)
    empty = init_cache(transformer, 1, 256)

    def cached() -> np.ndarray:
        return np.concatenate(list(generate(going_on, params, empty, prompt, 16, key, greedy, context=256)), 1)

    def read_again() -> np.ndarray:
        tokens = np.pad(prompt, ((0, 0), (0, 16)))
        for length in range(240, 256):
            tokens[0, length] = int(whole(params, tokens)[0, length - 1].argmax())
        return tokens[:, 240:]

    if not np.array_equal(cached(), read_again()):
        raise UserError("the cache gives other tokens than recomputing the prefix")

    def turn(function: Any) -> Turn:
        def seconds(repeats: int) -> list[float]:
            values = []
            for _ in range(repeats):
                before = time.perf_counter()
                function()
                values.append(time.perf_counter() - before)
            return values

        return seconds

    seconds = race({"cache": turn(cached), "prefix": turn(read_again)}, config.rounds)
    faster = ratio(seconds["prefix"], seconds["cache"])
    rates = {name: spread([16 / x for x in values]) for name, values in seconds.items()}
    figures = [figure("cache at 256 tokens, times the tokens/s without", faster["median"], ">=", 5)]
    return {"tokens_per_second": rates, "times_faster": faster, "figures": figures}


def context(config: Config) -> dict[str, Any]:
    """Losses, memory and seconds of steps on long windows, with jaxai's and with dense attention."""
    found = with_either_attention(long_windows, config.text)
    mine, dense = found["jaxai"], found["jax.nn"]
    figures = [
        figure("our peak memory, GiB", mine["peak_gib"], "<=", CONTEXT_GIB),
        figure("temporaries of dense attention, GiB", dense["temporaries_gib"], ">=", CONTEXT_GIB),
    ]
    return {"context": CONTEXT, "gib": CONTEXT_GIB, **found, "figures": figures}


def long_windows(attention: str, text: Path | None) -> dict[str, Any]:
    """Train on one long window per step with limited memory; return the measurements, or the error."""
    loaded = load_text(text).string
    vocabulary = characters(loaded)
    network = LanguageModel(vocabulary.size, dataclasses.replace(PRESET.transformer, max_length=CONTEXT))
    batches = windows(vocabulary.encode(loaded), 1, CONTEXT, seed=0)
    first = partial(first_state, network)
    step = partial(train_step, loss_fn=partial(next_token_loss, network), tx=TX)
    inputs = [next(batches) for _ in range(CONTEXT_STEPS)]

    def loss(metrics: dict[str, jax.Array]) -> float:
        return round(float(metrics["loss"]), 4)

    return limited_steps(step, first, inputs, loss, attention=attention, gib=CONTEXT_GIB)


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
