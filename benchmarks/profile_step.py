"""Time of a training step of the Keras baseline's classifier, op by op.

    python benchmarks/profile_step.py                    # batch 64, a minute

XLA's profile of the compiled step on CPU, one step per call: each op's time, share and source. For comparison, the time
of the step's FLOPs at the rate of a large matrix product, a lower bound for this arithmetic. The profile shows a
product's calling thread only, so shares need not sum to 1. Prints a table in Markdown and writes JSON to --out.
"""

import dataclasses
import gzip
import json
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from timing import write
from train_step import STEP, first_state, random_data

from jaxai import cli
from jaxai.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    out: Path = Path("runs/benchmarks/profile_step")
    batch_size: int = 64
    steps: int = 50
    """Steps over which times are averaged."""
    top: int = 20
    """Rows of the table; other ops are summed in one row."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.steps, self.top) < 1:
            raise UserError("--batch-size, --steps and --top must be at least 1")


def main(config: Config) -> None:
    """Compile, profile, print, write."""
    cli.start_platform("cpu", 1)
    config.out.mkdir(parents=True, exist_ok=True)
    data = random_data(config.batch_size)
    batch = {"image": jnp.asarray(data.images), "label": jnp.asarray(data.labels)}
    state = first_state()
    compiled = jax.jit(STEP, donate_argnums=0).lower(state, batch).compile()
    cost: Any = compiled.cost_analysis()
    peak = product_rate()
    events, seconds = profile(compiled, state, batch, config.steps)
    rows = shares(str(compiled.as_text()), events, seconds, config.steps)
    figures = {
        "batch_size": config.batch_size,
        "milliseconds": round(seconds / config.steps * 1e3, 2),
        "gflop": round(cost["flops"] / 1e9, 3),
        "large_product_gflops": round(peak),
        "milliseconds_at_that_rate": round(cost["flops"] / peak / 1e6, 2),
    }
    print(json.dumps(figures))
    print(table(rows, config.top))
    write(config.out / "profile_step.json", {**figures, "ops": rows, "figures": []})


def product_rate() -> float:
    """GFLOP/s of a 2048 x 2048 float32 product, the best of nine."""
    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(10):
        before = time.perf_counter()
        jax.block_until_ready(product(a, a))
        seconds.append(time.perf_counter() - before)
    return 2 * 2048**3 / min(seconds[1:]) / 1e9


def profile(compiled: Any, state: Any, batch: Any, steps: int) -> tuple[list[dict[str, Any]], float]:
    """The profiler's events over ``steps`` steps, and their total seconds."""
    metrics = None
    for _ in range(10):
        state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would double the time
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
            before = time.perf_counter()
            for _ in range(steps):
                late, (state, metrics) = metrics, compiled(state, batch)
                jax.device_get(late)
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - before
        path = next(Path(folder).rglob("perfetto_trace.json.gz"))
        with gzip.open(path) as file:
            return json.load(file)["traceEvents"], seconds


def shares(program: str, events: list[dict[str, Any]], seconds: float, steps: int) -> list[dict[str, Any]]:
    """Milliseconds per step and share of every op of the compiled program, largest first."""
    line = r'%(?P<name>[\w.\-]+) = (?P<shape>\w+\[[\d,]*\]).*?op_name="(?P<source>[^"]*)"'
    ops = {found["name"]: found for found in re.finditer(line, program)}
    times = Counter()
    for event in events:
        if event.get("ph") == "X" and event["name"] in ops:
            times[event["name"]] += event["dur"] / 1e3 / steps
    step = seconds / steps * 1e3
    return [
        {
            "op": name,
            "result": ops[name]["shape"],
            "from": ops[name]["source"].removeprefix("jit(train_step)/"),
            "milliseconds": round(value, 3),
            "share": round(value / step, 4),
        }
        for name, value in times.most_common()
    ]


def table(rows: list[dict[str, Any]], top: int) -> str:
    """Format the table in Markdown."""
    lines = ["| op | result | source | ms | share |", "|---|---|---|---|---|"]
    rest = rows[top:]
    others = {"op": f"{len(rest)} others", "result": "", "from": ""}
    others |= {name: sum(row[name] for row in rest) for name in ("milliseconds", "share")}
    for row in [*rows[:top], *([others] if rest else [])]:
        time_and_share = f"{row['milliseconds']:.2f} | {100 * row['share']:.1f} %"
        lines.append(f"| {row['op']} | {row['result']} | {row['from']} | {time_and_share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
