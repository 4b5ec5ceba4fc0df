"""Time from the command to the first training step, with a cold and with a warm compilation cache.

    python benchmarks/startup.py                    # 3 rounds, 2 minutes

Starts ``experiments/gan_mnist.py`` (preset default) as a process, waits for step 1 in its metrics.jsonl and kills it:
once with an empty compilation cache, once with the cache of the first start. The time includes imports, data, the first
pictures and compilation. Writes JSON to --out.
"""

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from jaxai import cli
from jaxai.errors import UserError

SCRIPT = Path(__file__).parent.parent / "experiments" / "gan_mnist.py"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    rounds: int = 3
    out: Path = Path("runs/benchmarks/startup.json")


def main(config: Config) -> None:
    """Measure, print, write."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, values in seconds.items():
                values.append(first_step(Path(folder) / name, Path(folder) / "cache"))
    result = {name: {"median": statistics.median(v), "min": min(v), "max": max(v)} for name, v in seconds.items()}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps({"date": str(date.today()), "seconds": result}, indent=2) + "\n")
    print(config.out.read_text())


def first_step(workdir: Path, cache: Path) -> float:
    """Seconds from starting the command to the line of step 1 in its metrics.jsonl."""
    nowhere = "http://127.0.0.1:9"  # no network, so that no round downloads the data
    environment = {
        **os.environ,
        **dict.fromkeys(["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"], nowhere),
        "NO_PROXY": "",
        "no_proxy": "",
        "TFDS_DATA_DIR": str(cache.parent / "tfds"),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    before = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "--workdir", str(workdir)], env=environment, stderr=subprocess.PIPE, text=True
    ) as job:
        while not has_step(workdir / "metrics.jsonl"):
            if job.poll() is not None:
                raise UserError(f"{SCRIPT} ended before its first step: {job.stderr.read() if job.stderr else ''}")
            time.sleep(0.02)
        seconds = time.perf_counter() - before
        job.send_signal(signal.SIGKILL)
    return seconds


def has_step(path: Path) -> bool:
    """Return whether step 1 is in metrics.jsonl."""
    return path.exists() and '"step": 1,' in path.read_text()


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
