"""Attention against jax.nn, tokamax and PyTorch: times, derivatives, sparsity, memory, decoding.

    python benchmarks/attention.py --peers PYTHON             # all sections
    python benchmarks/attention.py speed --peers PYTHON       # forward pass, and with gradient, T = 64 ... 16384
    python benchmarks/attention.py orders                     # jvp, Hessian-vector product, gradient penalty
    python benchmarks/attention.py sparse                     # causal, window and packed segments relative to full
    python benchmarks/attention.py memory                     # temporaries up to T = 131072, compiled but not run
    python benchmarks/attention.py decode --peers PYTHON      # tokens/s with a cache

PYTHON is the interpreter of a separate environment (Python 3.11, ``pip install -r benchmarks/peers.txt``, a C++
compiler for FlexAttention); tokamax is the extra ``bench``. All is float32 with B = 1 and 8 heads of 64, on an idle CPU
(benchmarks/gpu.py is for GPUs). Each section writes JSON to --out, ``speed`` also a plot.
Each section first checks its programs against jax.nn in float32 at a small T; then they take turns, in ``speed`` with a
matrix product. The forward pass counts 4 B N T T H operations, with gradient 3.5 times as many, half if causal.
"""

import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from decoding import decode_contender
from derivatives import KINDS, Attend, Data, forward, gradient
from matplotlib.figure import Figure
from timing import (
    Ask,
    NotAvailable,
    Turn,
    available,
    build,
    check_interpreter,
    figure,
    matrix_product,
    peer_process,
    race,
    ratio,
    relative,
    spread,
    turns,
    write,
)

from jaxai import cli
from jaxai.attention import SlidingWindow, dot_product_attention
from jaxai.errors import UserError

PEER = Path(__file__).parent / "peers" / "torch_attention.py"
HEADS, HEAD_SIZE = 8, 64
LENGTHS = (64, 512, 1024, 2048, 4096, 8192, 16384)
CHECK_TOKENS = 1190  # gives ragged blocks and three segments
MOST_GIB = 6
"""Programs with more temporaries are skipped."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    what: tyro.conf.Positional[Literal["all", "speed", "orders", "sparse", "memory", "decode"]] = "all"
    peers: Path | None = None
    """An interpreter that has PyTorch; by default PyTorch is skipped."""
    out: Path = Path("runs/benchmarks/attention")
    rounds: int = 5
    """Turns per program."""
    longest: int = 16384
    """The largest T; memory goes up to eight times this."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"--rounds must be at least 1, got {self.rounds}")
        if self.longest < 64:
            raise UserError(f"--longest must be at least 64, got {self.longest}")


def main(config: Config) -> None:
    """Measure, print, write JSON and a plot."""
    check_interpreter(config.peers, "benchmarks/attention.py")
    cli.start_platform("cpu", 0)
    config.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in SECTIONS if config.what in (name, "all")]
    if not config.peers and {"speed", "decode"} & set(names):
        print("PyTorch is skipped: give --peers PYTHON (see the head of benchmarks/attention.py)", flush=True)
    with peer_process(config.peers, PEER) as torch:
        for name in names:
            write(config.out / f"{name}.json", SECTIONS[name](config, torch))


def inputs(tokens: int) -> Data:
    """Random q, k, v, weights, direction and segments for this T."""
    shape = (1, tokens, HEADS, HEAD_SIZE)
    q, k, v, w, *direction = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 7))
    segments = jnp.arange(tokens, dtype=jnp.int32)[None] // 512
    return Data((q, k, v), w, tuple(direction), segments)


def plain(attend: Callable[..., jax.Array], causal: bool) -> Attend:
    """Adapt ``attend`` to a signature whose segments it ignores."""
    return lambda q, k, v, segments: attend(q, k, v, is_causal=causal)


def word(causal: bool) -> str:
    """The mask's name in messages."""
    return "causal" if causal else "full"


# Timing and numerics.


def contender(attend: Attend, kind: str, data: Data) -> tuple[Turn, float]:
    """Turns of a program and its compilation time in seconds. NotAvailable if it needs too much memory."""
    program, seconds = build(partial(KINDS[kind], attend), data)
    needed = program.memory_analysis().temp_size_in_bytes / 2**30
    if needed > MOST_GIB:
        raise NotAvailable(f"needs {needed:.1f} GiB of temporaries, more than {MOST_GIB}")
    return turns(program, data), seconds


def difference(attend: Attend, reference: Attend, kinds: Sequence[str]) -> float:
    """The largest difference from the reference over all results. UserError above 1e-4."""
    data = inputs(CHECK_TOKENS)
    got, wanted = ([build(partial(KINDS[kind], f), data)[0](data) for kind in kinds] for f in (attend, reference))
    return relative(jax.tree.leaves(got), jax.tree.leaves(wanted), 1e-4)


def torch_difference(torch: Ask, op: str, causal: bool) -> float:
    """The same for PyTorch's output and, for op sdpa, its gradients."""
    data, reference = inputs(CHECK_TOKENS), plain(jax.nn.dot_product_attention, causal)
    wanted = {"out": forward(reference, data)}
    wanted |= dict(zip(("dq", "dk", "dv"), gradient(reference, data)[1], strict=True))
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.npz") for name in ("inputs", "outputs")}
        q, k, v = data.qkv
        np.savez(paths["inputs"], q=q, k=k, v=v, w=data.w)
        torch(ask="check", op=op, causal=causal, **paths)
        with np.load(paths["outputs"]) as saved:
            return relative([saved[name] for name in saved.files], [wanted[name] for name in saved.files], 1e-4)


# PyTorch.


def torch_contender(torch: Ask, op: str, kind: str, tokens: int, causal: bool) -> tuple[Turn, float]:
    """Turns and the seconds of the first call, which compiles FlexAttention."""
    ask = partial(torch, ask="time", op=op, kind=kind, tokens=tokens, causal=causal)
    return lambda repeats: ask(repeats=repeats)["seconds"], ask(repeats=1)["first_seconds"]


# The sections.

SPEED_WANTED = {
    ("forward", False): {"jax.nn": 3, "torch_sdpa": 1.5, "product": 0.75},
    ("forward", True): {"jax.nn": 4, "torch_sdpa": 1.5, "product": 0.6},
    ("gradient", False): {"jax.nn": 2, "torch_sdpa": 1.3, "product": 0.6},
    ("gradient", True): {"jax.nn": 4, "torch_sdpa": 1.3, "product": 0.6},
}
"""Lower bounds from T = 4096 on: speed relative to a peer, and share of the matrix product's rate."""


def speed(config: Config, torch: Ask | None) -> dict[str, Any]:
    """Time forward pass and gradient of every library at every T."""
    programs = libraries()
    differences, reasons = available(speed_checks(programs, torch))
    size = min(4096, config.longest)
    product = matrix_product(size, jnp.float32), 2 * size**3
    rows, lengths = [], [tokens for tokens in LENGTHS if tokens <= config.longest]
    for kind, causal, tokens in itertools.product(("forward", "gradient"), (False, True), lengths):
        data = inputs(tokens)
        makers = {name: partial(contender, plain(attend, causal), kind, data) for name, attend in programs.items()}
        if torch:
            for op in ("sdpa", "flex"):
                makers[f"torch_{op}"] = partial(torch_contender, torch, op, kind, tokens, causal)
        rows.append({"kind": kind, "causal": causal, "tokens": tokens})
        rows[-1] |= speed_row(rows[-1], makers, product, config.rounds)
        print(json.dumps(rows[-1]), flush=True)
    plot(config.out / "speed.png", rows)
    return {
        "largest_difference": differences | reasons,
        "torch": torch(ask="versions") if torch else None,
        "tokamax": version("tokamax") if "tokamax" in differences else None,
        "rows": rows,
        "figures": speed_figures(rows),
    }


def libraries() -> dict[str, Callable[..., jax.Array]]:
    """The JAX implementations by name, jaxai first."""
    programs = {"jaxai": dot_product_attention, "jax.nn": jax.nn.dot_product_attention}
    try:
        import tokamax  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(f"tokamax is skipped: {error} (pip install -e '.[bench]')", flush=True)
        return programs
    return programs | {"tokamax": partial(tokamax.dot_product_attention, implementation="xla_chunked")}


def speed_checks(programs: Mapping[str, Callable[..., jax.Array]], torch: Ask | None) -> dict[str, Callable[[], float]]:
    """Functions that compute the largest difference from jax.nn, by library."""

    def by_jax(attend: Callable[..., jax.Array]) -> float:
        pairs = [(plain(attend, causal), plain(jax.nn.dot_product_attention, causal)) for causal in (False, True)]
        return max(difference(*pair, ("forward", "gradient")) for pair in pairs)

    def by_torch(torch: Ask, op: str) -> float:
        return max(torch_difference(torch, op, causal) for causal in (False, True))

    checks = {name: partial(by_jax, attend) for name, attend in programs.items()}
    return checks | ({f"torch_{op}": partial(by_torch, torch, op) for op in ("sdpa", "flex")} if torch else {})


def speed_row(
    case: Mapping[str, Any],
    makers: Mapping[str, Callable[[], tuple[Turn, float]]],
    product: tuple[Turn, float],
    rounds: int,
) -> dict[str, Any]:
    """Time one case. Rates are 10^9 useful operations/s; "times_faster" is the first contender's speed over others'."""
    made, reasons = available(makers)
    seconds = race({name: turn for name, (turn, _) in made.items()} | {"product": product[0]}, rounds)
    products = seconds.pop("product")
    ours, *others = seconds
    count = 4 * HEADS * case["tokens"] ** 2 * HEAD_SIZE
    count *= (3.5 if case["kind"] == "gradient" else 1) / (2 if case["causal"] else 1)
    return {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "gflops": {name: spread([count / value / 1e9 for value in values]) for name, values in seconds.items()},
        "product_gflops": spread([product[1] / value / 1e9 for value in products]),
        "times_faster": {name: ratio(seconds[name], seconds[ours]) for name in others},
        "share_of_product": {name: ratio(products, seconds[name], count / product[1]) for name in seconds},
        "compile_seconds": {name: round(value, 2) for name, (_, value) in made.items()},
        "not_available": reasons,
    }


def speed_figures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures with their bounds."""
    figures = []
    for row in rows:
        case = f"{row['kind']} {word(row['causal'])} T={row['tokens']}"
        faster = {name: values["median"] for name, values in row["times_faster"].items()}
        wanted = SPEED_WANTED[row["kind"], row["causal"]] if row["tokens"] >= 4096 else {"jax.nn": 0.9}
        for name, bound in wanted.items():
            if name == "product":
                share = row["share_of_product"]["jaxai"]["median"]
                figures.append(figure(f"{case}, share of the product's rate", share, ">=", bound))
            elif name in faster:
                figures.append(figure(f"{case}, times faster than {name}", faster[name], ">=", bound))
    return figures


def plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plot rates over T, one panel per kind, with the matrix product's rate."""
    canvas = Figure(figsize=(10, 6), layout="constrained")
    panels = canvas.subplots(2, 2, sharex=True, sharey=True)
    cases = itertools.product(("forward", "gradient"), (False, True))
    for axes, (kind, causal) in zip(panels.flat, cases, strict=True):
        chosen = [row for row in rows if (row["kind"], row["causal"]) == (kind, causal)]
        for name in dict.fromkeys(name for row in chosen for name in row["gflops"]):
            points = [(row["tokens"], row["gflops"][name]["median"]) for row in chosen if name in row["gflops"]]
            axes.plot(*zip(*points, strict=True), "o-", label=name)
        products = [row["product_gflops"]["median"] for row in chosen]
        axes.plot([row["tokens"] for row in chosen], products, "k--", label="matrix product")
        axes.set_title(f"{kind}, {word(causal)}")
    panels[0, 0].set_xscale("log", base=2)
    panels[0, 0].set_ylim(bottom=0)
    canvas.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper")
    canvas.supxlabel("T")
    canvas.supylabel("10^9 useful operations/s")
    canvas.savefig(path, dpi=120)


class Variant(NamedTuple):
    """A program, its reference, and an upper bound ``most`` on its time relative to variant ``base``."""

    kind: str
    attend: Attend
    reference: Attend
    base: str
    most: float


def compare(variants: Mapping[str, Variant], tokens: int, rounds: int) -> dict[str, Any]:
    """Check and time all variants."""
    differences = {name: difference(v.attend, v.reference, [v.kind]) for name, v in variants.items()}
    data = inputs(tokens)
    made = {name: contender(v.attend, v.kind, data) for name, v in variants.items()}
    seconds = race({name: turn for name, (turn, _) in made.items()}, rounds)
    rows, figures = [], []
    for name, (_, _, _, base, most) in variants.items():
        times = ratio(seconds[name], seconds[base])
        rows.append({"what": name, "tokens": tokens, "seconds": spread(seconds[name]), "of": base, "times": times})
        rows[-1] |= {"compile_seconds": round(made[name][1], 2)}
        if name != base:
            figures.append(figure(f"{name} T={tokens}, times {base}", times["median"], "<=", most))
    return {"largest_difference": differences, "rows": rows, "figures": figures}


def orders(config: Config, torch: Ask | None) -> dict[str, Any]:
    """Time higher derivatives relative to those of lower order."""
    most = {"jvp": ("forward", 3.0), "hvp": ("gradient", 2.3), "penalty": ("gradient", 4.0)}
    variants = {}
    for causal, kind in itertools.product((False, True), KINDS):
        ours, theirs = plain(dot_product_attention, causal), plain(jax.nn.dot_product_attention, causal)
        base, bound = most.get(kind, (kind, 1.0))
        variants[f"{kind} {word(causal)}"] = Variant(kind, ours, theirs, f"{base} {word(causal)}", bound)
    return compare(variants, min(4096, config.longest), config.rounds)


def sparse(config: Config, torch: Ask | None) -> dict[str, Any]:
    """Time masks relative to full attention."""
    ours, theirs = dot_product_attention, jax.nn.dot_product_attention

    def packed(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        return theirs(q, k, v, mask=segments[:, None, :, None] == segments[:, None, None, :])

    masks: dict[str, tuple[Attend, Attend, float]] = {
        "full": (plain(ours, False), plain(theirs, False), 1.0),
        "causal": (plain(ours, True), plain(theirs, True), 0.6),
        "window 256": (
            lambda q, k, v, segments: ours(q, k, v, mask=SlidingWindow(256, 0)),
            lambda q, k, v, segments: theirs(q, k, v, local_window_size=(256, 0)),
            0.1,
        ),
        "segments of 512": (lambda q, k, v, segments: ours(q, k, v, segment_ids=(segments, segments)), packed, 0.15),
    }
    variants = {
        f"{kind} {name}": Variant(kind, attend, reference, f"{kind} full", most)
        for kind in ("forward", "gradient")
        for name, (attend, reference, most) in masks.items()
    }
    return compare(variants, min(8192, config.longest), config.rounds)


MEMORY_WANTED = {"forward": 60, "gradient": 150, "jvp": 250, "hvp": 400, "penalty": 700}
"""Upper bounds on temporaries at T = 16384 in MiB."""


def memory(config: Config, torch: Ask | None) -> dict[str, Any]:
    """Temporaries as XLA counts them."""
    rows, figures = [], []
    lengths = [tokens for tokens in (4096, 16384, 65536, 131072) if tokens <= 8 * config.longest]
    for causal, (kind, bound) in itertools.product((False, True), MEMORY_WANTED.items()):
        mib: dict[int, float] = {}
        for tokens in lengths:
            data = jax.eval_shape(partial(inputs, tokens))
            program, seconds = build(partial(KINDS[kind], plain(dot_product_attention, causal)), data)
            mib[tokens] = program.memory_analysis().temp_size_in_bytes / 2**20
            rows.append({"kind": kind, "causal": causal, "tokens": tokens, "mib": round(mib[tokens], 2)})
            rows[-1] |= {"compile_seconds": round(seconds, 2)}
            print(json.dumps(rows[-1]), flush=True)
        case = f"{kind} {word(causal)}, temporaries"
        if 16384 in mib:
            figures.append(figure(f"{case} at T=16384 in MiB", mib[16384], "<=", bound))
        if (longest := mib.get(131072)) is not None:
            figures.append(
                figure(f"{case} per token at T=131072, times T=16384's", longest / mib[16384] / 8, "<=", 1.1)
            )
    return {"rows": rows, "figures": figures}


def decode(config: Config, torch: Ask | None) -> dict[str, Any]:
    """Tokens/s at the end of a cache of 4096, batch 8: one update and one attention per token."""
    batch, capacity = 8, min(4096, config.longest)
    steps = min(64, capacity // 2)
    turn, compile_seconds, largest = decode_contender(batch, capacity, steps)
    contenders: dict[str, Turn] = {"jaxai": turn}
    if torch:
        ask = partial(torch, ask="decode", batch=batch, capacity=capacity, steps=steps)
        contenders["torch_sdpa"] = lambda _: ask()["seconds"]
    seconds = race(contenders, config.rounds)
    return {
        "largest_difference": largest,
        "torch": torch(ask="versions") if torch else None,
        "shape": {"batch": batch, "capacity": capacity, "heads": HEADS, "head_size": HEAD_SIZE},
        "tokens_per_second": {name: spread([batch / value for value in seconds[name]]) for name in seconds},
        "times_faster": {name: ratio(seconds[name], seconds["jaxai"]) for name in seconds if name != "jaxai"},
        "compile_seconds": round(compile_seconds, 2),
        "figures": [],
    }


SECTIONS: dict[str, Callable[[Config, Ask | None], dict[str, Any]]] = {
    "speed": speed,
    "orders": orders,
    "sparse": sparse,
    "memory": memory,
    "decode": decode,
}

if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
