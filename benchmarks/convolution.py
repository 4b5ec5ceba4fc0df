"""Convolution and pooling against jax.lax, Keras and PyTorch: numerics, then speed of each case.

    python benchmarks/convolution.py --peers PYTHON               # every case, 5 minutes
    python benchmarks/convolution.py --peers PYTHON --rounds 0    # numerics only
    python benchmarks/convolution.py                              # without Keras and PyTorch

PYTHON is the interpreter of a separate environment (Python 3.11, ``pip install -r benchmarks/peers.txt``). Run it on
an otherwise idle machine. Each library computes y and the gradients of sum(y * w) in images and kernel, in float32. One
line per case prints the largest differences, relative to the largest entry; a second one, measured in alternating
turns, examples/s and jaxai's speed over each library's. Cases that a library lacks are marked: Keras has named paddings
only, PyTorch pads both sides equally. Writes JSON to --out; the exit code is 1 if a difference exceeds 1e-5.
"""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from timing import Ask, Turn, available, build, check_interpreter, peer_libraries, race, ratio, spread, turns, write

from jaxai import cli
from jaxai.errors import UserError
from jaxai.ops.conv import conv, conv_transpose
from jaxai.ops.pool import avg_pool, max_pool

PEER = Path(__file__).parent / "peers" / "convolution.py"
LIBRARIES = ("keras", "torch")
BOUND = 1e-5
"""Bound on differences: float32 sums of up to 16,384 products in another order."""


@dataclasses.dataclass(frozen=True)
class Case:
    """An op at a shape; `kernel` is a pool's window; an integer `padding` is the number of zeros on every side."""

    op: str
    x: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: int = 1
    padding: str | int = "SAME"
    dilation: int = 1
    groups: int = 1


CASES = {
    "conv 3x3": Case("conv", (16, 16, 32), (3, 3, 32, 32)),
    "conv 3x3, first layer": Case("conv", (32, 32, 3), (3, 3, 3, 32)),
    "conv 4x4, stride 2": Case("conv", (16, 16, 32), (4, 4, 32, 32), 2),
    "conv 3x3, stride 2, SAME": Case("conv", (16, 16, 32), (3, 3, 32, 32), 2),
    "conv 3x3, stride 2, one zero around": Case("conv", (16, 16, 32), (3, 3, 32, 32), 2, 1),
    "conv 3x3, dilation 2": Case("conv", (16, 16, 32), (3, 3, 32, 32), dilation=2),
    "conv 3x3, 4 groups": Case("conv", (16, 16, 32), (3, 3, 8, 32), groups=4),
    "depthwise 3x3": Case("conv", (16, 16, 64), (3, 3, 1, 64), groups=64),
    "depthwise 3x3, stride 2, SAME": Case("conv", (16, 16, 64), (3, 3, 1, 64), 2, groups=64),
    "depthwise 3x3, stride 2, one zero around": Case("conv", (16, 16, 64), (3, 3, 1, 64), 2, 1, groups=64),
    "depthwise 3x3, two for each": Case("conv", (16, 16, 32), (3, 3, 1, 64), groups=32),
    "depthwise 3x3, dilation 2": Case("conv", (16, 16, 64), (3, 3, 1, 64), dilation=2, groups=64),
    "conv_transpose 4x4, stride 2": Case("conv_transpose", (8, 8, 64), (4, 4, 64, 32), 2),
    "conv_transpose 3x3, stride 2, VALID": Case("conv_transpose", (8, 8, 64), (3, 3, 64, 32), 2, "VALID"),
    "conv_transpose 3x3, stride 2, SAME": Case("conv_transpose", (8, 8, 64), (3, 3, 64, 32), 2),
    "max_pool 2x2, stride 2": Case("max_pool", (32, 32, 32), (2, 2), 2, "VALID"),
    "max_pool 3x3, stride 2, SAME": Case("max_pool", (32, 32, 32), (3, 3), 2),
    "max_pool 3x3, stride 2, one around": Case("max_pool", (32, 32, 32), (3, 3), 2, 1),
    "avg_pool 2x2, stride 2": Case("avg_pool", (32, 32, 32), (2, 2), 2, "VALID"),
    "avg_pool 3x3, stride 2, one zero around": Case("avg_pool", (32, 32, 32), (3, 3), 2, 1),
}
"""Shapes of x without the batch."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    peers: Path | None = None
    """An interpreter that has Keras and PyTorch; without it the only peer is jax.lax."""
    out: Path = Path("runs/benchmarks/convolution")
    batch: int = 16
    rounds: int = 5
    """Turns per library; 0 checks numerics only."""
    threads: int = os.cpu_count() or 1
    """Threads that the peers may use."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.threads < 1:
            raise UserError(f"--batch and --threads must be at least 1, got {self.batch} and {self.threads}")
        if self.rounds < 0:
            raise UserError(f"--rounds must be at least 0, got {self.rounds}")


def main(config: Config) -> None:
    """Check, measure, print, write JSON."""
    check_interpreter(config.peers, "benchmarks/convolution.py")
    cli.start_platform("cpu", 0)
    config.out.mkdir(parents=True, exist_ok=True)
    cases = {name: dataclasses.replace(case, x=(config.batch, *case.x)) for name, case in CASES.items()}
    with peer_libraries(config.peers, PEER, LIBRARIES, config.threads) as asks:
        checks = [check(name, case, asks) for name, case in cases.items()]
        rows = [speed(name, case, asks, config.rounds) for name, case in cases.items() if config.rounds]
    write(config.out / "convolution.json", {"bound": BOUND, "checks": checks, "rows": rows, "figures": []})
    if wrong := [row["case"] for row in checks if max(row["largest_difference"].values()) > BOUND]:
        print(f"differences over {BOUND}: {'; '.join(wrong)}", file=sys.stderr)
        sys.exit(1)


def operation(case: Case, implementation: str | None) -> Callable[..., jax.Array]:
    """The op as a function of images and, for convolutions, kernel."""
    padding: Any = case.padding
    if not isinstance(padding, str):
        padding = ((padding, padding), (padding, padding))
    options = {"strides": case.strides, "padding": padding, "implementation": implementation}
    if case.op in ("max_pool", "avg_pool"):
        return partial({"max_pool": max_pool, "avg_pool": avg_pool}[case.op], window=case.kernel, **options)
    if case.op == "conv_transpose":
        return partial(conv_transpose, **options)
    return partial(conv, kernel_dilation=case.dilation, feature_group_count=case.groups, **options)


def inputs(case: Case) -> tuple[list[jax.Array], jax.Array]:
    """Random images and kernel, and the weights of the sum."""
    shapes = [case.x] if case.op.endswith("pool") else [case.x, case.kernel]
    *keys, key_w = jax.random.split(jax.random.key(0), len(shapes) + 1)
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    return arrays, jax.random.normal(key_w, jax.eval_shape(operation(case, "lax"), *arrays).shape)


def everything(case: Case, implementation: str | None) -> Callable[..., Sequence[jax.Array]]:
    """A function that computes y and the gradient of sum(y * w) in every array."""

    def compute(arrays: list[jax.Array], w: jax.Array) -> Sequence[jax.Array]:
        y, pull = jax.vjp(operation(case, implementation), *arrays)
        return y, *pull(w)

    return compute


def check(name: str, case: Case, asks: dict[str, Ask]) -> dict[str, Any]:
    """Print and return the largest difference of each library from jaxai."""
    arrays, w = inputs(case)
    ours = jax.jit(everything(case, None))(arrays, w)
    theirs = {"lax": partial(jax.jit(everything(case, "lax")), arrays, w)}
    theirs |= {library: partial(asked, ask, case, arrays, w) for library, ask in asks.items()}
    differences, reasons = available({who: partial(difference, ours, compute) for who, compute in theirs.items()})
    row = {"case": name, "largest_difference": differences} | ({"not_available": reasons} if reasons else {})
    print(json.dumps(row), flush=True)
    return row


def difference(ours: Sequence[Any], compute: Callable[[], Sequence[Any]]) -> float:
    """The largest difference, relative to the largest entry of its array."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(ours, compute(), strict=True)]
    return float(f"{max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs):.2g}")


def asked(ask: Ask, case: Case, arrays: list[jax.Array], w: jax.Array) -> list[np.ndarray]:
    """A peer's y and gradients on these arrays."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.npz") for name in ("inputs", "outputs")}
        np.savez(paths["inputs"], w=w, **dict(zip(("x", "kernel"), arrays, strict=False)))
        ask(ask="check", case=dataclasses.asdict(case), **paths)
        with np.load(paths["outputs"]) as saved:
            return [saved[name] for name in ("y", "dx", "dkernel") if name in saved.files]


def speed(name: str, case: Case, asks: dict[str, Ask], rounds: int) -> dict[str, Any]:
    """Examples/s of each library."""
    arrays, w = inputs(case)

    def here(implementation: str | None) -> Turn:
        return turns(build(everything(case, implementation), arrays, w)[0], arrays, w)

    def there(ask: Ask) -> Turn:
        request = partial(ask, ask="time", case=dataclasses.asdict(case) | {"y": w.shape})
        request(repeats=1)  # raises NotAvailable here if unsupported
        return lambda repeats: request(repeats=repeats)["seconds"]

    makers = {"jaxai": partial(here, None), "lax": partial(here, "lax")}
    contenders, _ = available(makers | {library: partial(there, ask) for library, ask in asks.items()})
    seconds = race(contenders, rounds)
    row = {
        "case": name,
        "examples_per_second": {who: spread([len(w) / x for x in values]) for who, values in seconds.items()},
        "times_faster": {who: ratio(seconds[who], seconds["jaxai"]) for who in seconds if who != "jaxai"},
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
