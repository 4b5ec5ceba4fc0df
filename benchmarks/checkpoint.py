"""The cost of a checkpoint: copying the state, which blocks training, writing, verifying and restoring.

    python benchmarks/checkpoint.py            # one minute

States of random float32 numbers, from 33 MiB (the digit GAN's) to 1 GiB, are saved, verified and restored in turn.
At one save per minute, the bound of 2 % of the time is 1.2 seconds per save. Writes JSON to --out.
"""

import dataclasses
import logging
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from timing import figure, spread, write

from jaxai import cli
from jaxai.distributed.mesh import make_mesh
from jaxai.distributed.sharding import state_sharding
from jaxai.errors import UserError
from jaxai.run.checkpoint import Checkpoints, verify
from jaxai.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the states and number of rounds."""

    mebibytes: tuple[int, ...] = (33, 256, 1024)
    rounds: int = 5
    out: Path = Path("runs/benchmarks/checkpoint")

    def __post_init__(self) -> None:
        if not self.mebibytes or min(self.mebibytes) < 1 or self.rounds < 1:
            raise UserError(f"--mebibytes and --rounds must be at least 1, got {self.mebibytes} and {self.rounds}")


def main(config: Config) -> None:
    """Measure, print, write JSON."""
    cli.start_platform("cpu", 1)
    logging.getLogger("absl").setLevel(logging.ERROR)
    config.out.mkdir(parents=True, exist_ok=True)
    rows = [measure(config, size) for size in config.mebibytes]
    for row in rows:
        print(row, flush=True)
    figures = [
        figure("digit GAN's save, share of a minute, %", rows[0]["save_seconds"]["median"] / 0.6, "<=", 2),
        figure("GB verified per second, largest state", rows[-1]["verify_gb_a_second"]["median"], ">=", 1),
    ]
    write(config.out / "checkpoint.json", {"rows": rows, "figures": figures})


def measure(config: Config, mebibytes: int) -> dict[str, Any]:
    """Seconds to copy and to save the state (copy and files), and GB/s of verifying and restoring it."""
    copies, saves, verified, restored = [], [], [], []
    state = random_state(mebibytes)
    with tempfile.TemporaryDirectory() as folder, closing(Checkpoints(Path(folder), keep=1)) as checkpoints:
        shapes = jax.eval_shape(lambda: state)
        shardings = state_sharding(shapes, make_mesh(1))
        for step in range(1, config.rounds + 1):
            copies.append(seconds(lambda step=step: checkpoints.save(step, state, {})))
            saves.append(copies[-1] + seconds(checkpoints.wait))
            path = Path(folder) / str(step)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e9
            verified.append(size / seconds(lambda path=path: verify(path)))
            restored.append(size / seconds(lambda step=step: checkpoints.restore(step, shapes, shardings)))
    return {
        "mebibytes": mebibytes,
        "copy_seconds": spread(copies),
        "save_seconds": spread(saves),
        "verify_gb_a_second": spread(verified),
        "restore_gb_a_second": spread(restored),
    }


def random_state(mebibytes: int) -> PyTree:
    """A state of sixteen equally large arrays."""
    rng = np.random.default_rng(0)
    return {f"array_{n}": jax.numpy.asarray(rng.random((mebibytes, 2**14), np.float32)) for n in range(16)}


def seconds(action: Any) -> float:
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
