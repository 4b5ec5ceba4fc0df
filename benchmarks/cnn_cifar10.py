"""The whole CIFAR-10 experiment against the Keras baseline, the program of an introductory article on CNNs.

    python benchmarks/cnn_cifar10.py --peers PYTHON --data-dir DIR        # 3 seeds, 15 minutes

PYTHON is the interpreter of a separate environment (Python 3.11, ``pip install -r benchmarks/peers.txt``); DIR holds
CIFAR-10's official binary files. Run it on an otherwise idle machine. For each seed ``experiments/cnn_cifar10.py`` and
the Keras baseline run in turn as commands, with their default number of threads; the time is from the start of the
process to its line "Test accuracy". Ours starts with an empty compilation cache, so the time includes compilation.
Finally the speed of the input pipeline is compared with that of training. Writes JSON to --out.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from timing import check_interpreter, figure, load_experiment, ratio, spread, write

from jaxai import cli
from jaxai.data import ImageDataset, load
from jaxai.data.images import official
from jaxai.data.pipeline import batches
from jaxai.distributed.mesh import make_mesh
from jaxai.distributed.sharding import batch_sharding, put_batch
from jaxai.errors import MissingFileError, UserError

REPOSITORY = Path(__file__).parent.parent
OURS = REPOSITORY / "experiments" / "cnn_cifar10.py"
PEER = REPOSITORY / "benchmarks" / "peers" / "keras_cnn_cifar10.py"
EPOCHS, IMAGES, BATCH = 10.0, 50_000, 64
SAID = "Test accuracy:"
KEYS = ("seconds", "accuracy")
PRESETS = load_experiment("cnn_cifar10").PRESETS


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    peers: Path
    """An interpreter that has Keras and TensorFlow."""
    data_dir: Path
    """A folder with CIFAR-10's official binary files."""
    out: Path = Path("runs/benchmarks/cnn_cifar10")
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of each program per seed."""
    presets: tuple[str, ...] = ("article", "fast")
    """Presets of our experiment."""
    epochs: float = EPOCHS
    """Fewer than 10 shorten every program, for a trial; below 1: a fraction of the first epoch."""

    def __post_init__(self) -> None:
        if not self.seeds or not self.presets:
            raise UserError(f"--seeds and --presets need one at least, got {self.seeds} and {self.presets}")
        if not 0 < self.epochs <= EPOCHS or (self.epochs > 1 and self.epochs % 1) or self.epochs * IMAGES < BATCH:
            raise UserError(f"--epochs must be a whole number up to 10, or above 0.0013 and below 1, got {self.epochs}")


def main(config: Config) -> None:
    """Run everything, print, write JSON."""
    check_interpreter(config.peers, "benchmarks/cnn_cifar10.py")
    folder = official_folder(config.data_dir)
    cli.start_platform("cpu", 0)
    data = load("cifar10", "train", data_dir=config.data_dir)
    if message := refusal([config.peers, PEER]):
        raise UserError(f"--peers {config.peers}: {message}")
    presets = config.presets
    if unknown := set(presets) - set(PRESETS):
        raise UserError(f"--presets {' '.join(sorted(unknown))} unknown: the experiment has {', '.join(PRESETS)}")
    config.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in config.seeds:
        row = {"seed": seed, **{preset: run_ours(config, preset, seed) for preset in presets[:1]}}
        row["keras"] = run_keras(config, folder, seed)
        row |= {preset: run_ours(config, preset, seed) for preset in presets[1:]}
        print(json.dumps(row), flush=True)
        rows.append(row)
    result = {"epochs": config.epochs, "rows": rows, **compare(rows, presets), "pipeline": pipeline(data)}
    batch_size = PRESETS[presets[0]].batch_size
    rates = [row[presets[0]]["steps"] * batch_size / row[presets[0]]["train_seconds"] for row in rows]
    result["training_examples_per_second"] = spread(rates)
    times = result["pipeline"]["median"] / statistics.median(rates)
    result["figures"].append(figure(f"input pipeline, times the training of {presets[0]}", times, ">=", 5))
    print(table(rows, presets))
    write(config.out / "cnn_cifar10.json", result)


def official_folder(data_dir: Path) -> Path:
    """The folder that holds the official files of both splits. MissingFileError if there is none."""
    found = [official.find_official("cifar10", split, data_dir) for split in ("train", "test")]
    if not all(found):
        raise MissingFileError(f"--data-dir {data_dir} has no data_batch_1.bin ... data_batch_5.bin, test_batch.bin")
    return {path.parent for paths in found for path in paths or ()}.pop()


def refusal(line: Sequence[str | Path]) -> str:
    """Run a program with --help; return its last message if it fails, else ""."""
    asked = subprocess.run([*line, "--help"], capture_output=True, text=True)
    return last_line(asked.stderr) if asked.returncode else ""


def run_ours(config: Config, preset: str, seed: int) -> dict[str, Any]:
    """Time and accuracy of our experiment, with its steps, compilation and training time."""
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch) / "run"
        options = {"--preset": preset, "--data-dir": config.data_dir, "--workdir": workdir, "--seed": seed}
        options |= {"--resume": "never", "--platform": "cpu"}
        if config.epochs < EPOCHS:
            options["--steps"] = max(1, round(config.epochs / EPOCHS * PRESETS[preset].steps))
        cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(scratch) / "cache")}
        result, _ = timed([sys.executable, OURS, *flat(options)], cache)
        summary = json.loads((workdir / "summary.json").read_text())
    return result | {name: summary[name] for name in ("steps", "compile_seconds", "train_seconds")}


def run_keras(config: Config, folder: Path, seed: int) -> dict[str, Any]:
    """Time and accuracy of the Keras baseline, with its versions."""
    options = {"--data-dir": folder, "--seed": seed, "--epochs": config.epochs}
    result, said = timed([config.peers, PEER, *flat(options)], {})
    return result | json.loads(said[-1])


def flat(options: Mapping[str, Any]) -> list[str]:
    """Options as command-line arguments."""
    return [str(part) for option in options.items() for part in option]


def timed(line: Sequence[str | Path], variables: Mapping[str, str]) -> tuple[dict[str, float], list[str]]:
    """Seconds until the line "Test accuracy", its accuracy, and all lines of the program's output.

    UserError with the program's last message if it fails, or if there is no such line.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}  # else the line is delayed in the pipe's buffer
    result: dict[str, float] = {}
    said = []
    with tempfile.TemporaryFile("w+") as messages:
        before = time.perf_counter()
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as job:
            for text in job.stdout or ():
                messages.write(text)
                if text.startswith(SAID) and not result:
                    seconds = round(time.perf_counter() - before, 2)
                    result = {"seconds": seconds, "accuracy": float(text.removeprefix(SAID))}
                said.append(text)
        messages.seek(0)
        if job.returncode:
            raise UserError(f"{line[1]} failed with exit code {job.returncode}: {last_line(messages.read())}")
    if not result:
        raise UserError(f"{line[1]} ended without a line that begins with {SAID!r}")
    return result, said


def last_line(text: str) -> str:
    """The last line of a program's output."""
    return (text.strip().splitlines() or ["no message"])[-1]


def compare(rows: Sequence[Mapping[str, Any]], presets: Sequence[str]) -> dict[str, Any]:
    """Times relative to Keras's, mean accuracies and their differences, and figures with their bounds."""
    result: dict[str, Any] = {"time_ratio": {}, "accuracy": {}, "accuracy_difference": {}, "figures": []}
    seconds, accuracies = ({name: [row[name][what] for row in rows] for name in ("keras", *presets)} for what in KEYS)
    for name, values in accuracies.items():
        result["accuracy"][name] = {"mean": round(statistics.mean(values), 4), **spread(values)}
    for preset in presets:
        result["time_ratio"][preset] = against = ratio(seconds[preset], seconds["keras"])
        difference = statistics.mean(accuracies[preset]) - statistics.mean(accuracies["keras"])
        result["accuracy_difference"][preset] = round(difference, 4)
        if preset == "fast":
            result["figures"] += [
                figure("fast: time, times Keras's", against["median"], "<=", 1.0),
                figure("fast: lowest test accuracy", min(accuracies[preset]), ">=", 0.8),
            ]
        else:
            widest = max(max(accuracies[name]) - min(accuracies[name]) for name in ("keras", preset))
            result["figures"] += [
                figure(f"{preset}: time, times Keras's", against["median"], "<=", 0.7),
                figure(f"{preset}: mean accuracy difference, spread of seeds", abs(difference), "<=", round(widest, 4)),
            ]
    return result


def pipeline(data: ImageDataset, count: int = 1000, rounds: int = 7) -> dict[str, float]:
    """Examples/s of the input alone: making batches of 64 and putting them on the device, over several turns."""
    sharding = batch_sharding(make_mesh(1))
    stream = batches(data, BATCH, seed=0)
    rates = []
    for _ in range(rounds):
        before = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(put_batch(next(stream), sharding))
        rates.append(count * BATCH / (time.perf_counter() - before))
    return spread(rates)


def table(rows: Sequence[Mapping[str, Any]], presets: Sequence[str]) -> str:
    """The rows of the README's table."""
    versions = rows[0]["keras"]
    programs = {"keras": f"Keras baseline, Keras {versions['keras']} on TensorFlow {versions['tensorflow']}"}
    programs |= {preset: f"`experiments/cnn_cifar10.py --preset {preset}`" for preset in presets}
    lines = ["| program | seconds to the test accuracy | test accuracy, % |", "|---|---|---|"]
    for name, program in programs.items():
        seconds, percent = ([scale * row[name][key] for row in rows] for key, scale in zip(KEYS, (1, 100), strict=True))
        cells = [f"{statistics.mean(x):.1f} ({min(x):.1f} to {max(x):.1f})" for x in (seconds, percent)]
        lines.append(f"| {program} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
