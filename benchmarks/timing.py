"""Shared by the benchmarks: timing in alternating turns, ratios per round, figures with their bounds."""

import contextlib
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxai import cli, errors
from jaxai.distributed.mesh import make_mesh, on_accelerator
from jaxai.distributed.sharding import state_sharding
from jaxai.errors import MissingFileError, UserError
from jaxai.typing import PyTree

if TYPE_CHECKING:  # attention's benchmarks run without Flax and Optax, which jaxai.train imports
    from jaxai.train.compiled_step import Step
    from jaxai.train.feed import Batches

Turn = Callable[[int], list[float]]
"""Run a number of calls and return the seconds of each, or of their mean."""
Ask = Callable[..., dict[str, Any]]
"""Send a request to a peer's process and return its answer, both as JSON objects."""


class NotAvailable(Exception):
    """A program does not support this; the message gives the reason."""


def load_experiment(name: str) -> ModuleType:
    """Import an experiment as a module, without running it."""
    path = Path(__file__).parent.parent / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", path)
    if spec is None or spec.loader is None:
        raise MissingFileError(f"{path} is missing: give the name of an experiment")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Compile a function; return the program and the seconds. NotAvailable if the library or XLA refuses."""
    before = time.perf_counter()
    try:
        program = jax.jit(function).lower(*arguments).compile()
    except (ValueError, RuntimeError) as error:
        raise NotAvailable(f"{type(error).__name__}: {errors.one_line(error)[:200]}") from error
    return program, time.perf_counter() - before


def turns(program: Callable[..., Any], *arguments: Any) -> Turn:
    """Turns of a compiled program. On a GPU calls are queued and timed together, to hide the launch overhead."""
    queued = jax.default_backend() == "gpu"

    def seconds(calls: int) -> float:
        before = time.perf_counter()
        results = None
        for _ in range(calls):
            results = program(*arguments)
        jax.block_until_ready(results)
        return (time.perf_counter() - before) / calls

    def turn(repeats: int) -> list[float]:
        if repeats > 1:
            seconds(1)  # warm-up: the caches hold another program's data
        return [seconds(repeats)] if queued else [seconds(1) for _ in range(repeats)]

    return turn


def training_turns(
    step: "Step",
    first_state: Callable[[], PyTree],
    stream: "Batches",
    steps: int,
    steps_per_call: int,
    *,
    devices: int = 1,
) -> Turn:
    """Turns of ``steps`` training steps including input, as `jaxai.train.loop` runs them."""
    from jaxai.train.compiled_step import CompiledStep
    from jaxai.train.feed import feed_of

    mesh = make_mesh(devices)
    with jax.set_mesh(mesh):
        shardings = state_sharding(jax.eval_shape(first_state), mesh)
        state = jax.jit(first_state, out_shardings=shardings)()
        accelerator = on_accelerator(mesh)
        feed = feed_of(stream, mesh, resident=accelerator)
        take = CompiledStep(step, shardings, feed, mesh, steps_per_call, fixed=accelerator)
        take.compile(state, steps_per_call)

    def turn(repeats: int) -> list[float]:
        nonlocal state
        seconds = []
        for _ in range(repeats):
            before = time.perf_counter()
            metrics = None
            for first in range(0, steps, steps_per_call):
                count = min(steps_per_call, steps - first)
                late, (state, metrics) = metrics, take(state, [next(feed.rows) for _ in range(count)])
                jax.device_get(late)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - before)
        return seconds

    return turn


def matrix_product(size: int, dtype: Any) -> Turn:
    """Turns of a product of two square matrices."""
    a, b = (jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(1)))
    return turns(build(jnp.matmul, a, b)[0], a, b)


def race(contenders: Mapping[str, Turn], rounds: int, turn_seconds: float = 0.2) -> dict[str, list[float]]:
    """Let programs take turns of ``turn_seconds`` or one call; return the median seconds per call in each round."""
    repeats = {}
    for name, turn in contenders.items():
        turn(1)
        repeats[name] = max(1, min(1000, math.ceil(turn_seconds / turn(1)[0])))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, turn in contenders.items():
            time.sleep(0.01)  # idle worker threads keep spinning for some milliseconds
            seconds[name].append(statistics.median(turn(repeats[name])))
    return seconds


def available[T](makers: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], dict[str, str]]:
    """Call each maker; return the results, and the reasons where one raises NotAvailable. The first must not."""
    made, reasons = {}, {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except NotAvailable as reason:
            if not made:
                raise
            reasons[name] = f"not available: {reason}"
    return made, reasons


def ratio(above: Sequence[float], below: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """The spread of the ratio of two programs' seconds in the same round."""
    return spread([scale * a / b for a, b in zip(above, below, strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum, to four digits."""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in numbers.items()}


def figure(what: str, value: float, wanted: Literal[">=", "<="], bound: float) -> dict[str, Any]:
    """A figure with its bound, and whether it is within it."""
    met = value >= bound if wanted == ">=" else value <= bound
    return {"what": what, "value": float(f"{value:.4g}"), "wanted": f"{wanted} {bound}", "met": met}


def relative(got: Sequence[Any], wanted: Sequence[Any], bound: float) -> float:
    """The largest difference, relative to the largest entry of its array. UserError if it exceeds the bound.

    float32 sums in another order differ by some 1e-6, derivatives of a gradient by 1e-5; bfloat16 has eight bits.
    """
    pairs = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(got, wanted, strict=True)]
    # Scalars are skipped: a sum over everything may cancel to near 0.
    value = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs if a.ndim)
    if not value <= bound:
        raise UserError(f"results differ from jax.nn's by {value:.1e} of the largest entry, more than {bound}")
    return value


@contextlib.contextmanager
def peer_process(python: Path | None, script: Path, *options: str) -> Iterator[Ask | None]:
    """Run a script with another interpreter; yield a function that queries it, or None without an interpreter.

    The process keeps freed memory, as `jaxai.cli` does.
    """
    if python is None:
        yield None
        return
    line = [str(python), str(script), *(options or ("--threads", str(os.cpu_count())))]
    memory = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_ARENA_MAX": "1"}
    environment = {**os.environ, **memory}
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as job:
        assert job.stdin
        assert job.stdout
        requests, answers = job.stdin, job.stdout

        def answer() -> dict[str, Any]:
            if not (said := answers.readline()):
                raise UserError(f"--peers {python}: its process ended, see above; it needs PyTorch")
            if "error" in (values := json.loads(said)):
                raise NotAvailable(values["error"])
            return values

        def ask(**request: Any) -> dict[str, Any]:
            print(json.dumps(request), file=requests, flush=True)
            return answer()

        print(json.dumps(answer()), flush=True)
        yield ask


def start_cpu(devices: int) -> None:
    """Start JAX on the CPU with several devices, with as many threads as cores.

    With 4 threads on two cores, `cli`'s default for two devices, a step of char-rnn's LSTM took 1.1 times as long.
    """
    if devices > 1:
        os.environ.setdefault("PJRT_NPROC", str(max(devices, os.cpu_count() or 1)))
    cli.start_platform("cpu", devices)


def with_either_attention(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, dict[str, Any]]:
    """Call ``function(attention, *arguments)`` in a new process for ``jaxai`` and ``jax.nn``; print each result."""
    found = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in ("jaxai", "jax.nn"):
            found[name] = pool.apply(function, (name, *arguments))
            print(json.dumps({name: found[name]}), flush=True)
    return found


def limited_steps(
    step: "Step",
    init: Callable[[], PyTree],
    inputs: Sequence[Any],
    loss: Callable[[Any], Any],
    *,
    attention: str,
    gib: int,
) -> dict[str, Any]:
    """Limit this process to ``gib`` GiB of memory and take a training step on each of ``inputs``.

    ``attention``: ``jaxai``, or ``jax.nn`` for its dense attention in Transformers. Return XLA's count of temporaries,
    and either the error or ``loss`` of each step's metrics, the peak memory and the seconds per step.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (gib * 2**30, gib * 2**30))
    dense = mock.patch("jaxai.nn.transformer.dot_product_attention", jax.nn.dot_product_attention)
    with dense if attention == "jax.nn" else contextlib.nullcontext():
        take = jax.jit(step, donate_argnums=0).lower(jax.eval_shape(init), inputs[0]).compile()
    memory = take.memory_analysis()
    assert memory
    found: dict[str, Any] = {"temporaries_gib": round(memory.temp_size_in_bytes / 2**30, 2)}
    losses, seconds, state = [], [], jax.jit(init)()
    try:
        for one in inputs:
            before = time.perf_counter()
            state, metrics = take(state, one)
            losses.append(loss(metrics))
            seconds.append(time.perf_counter() - before)
    except (RuntimeError, MemoryError) as error:
        return found | {"failed": errors.one_line(error)[:200]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found | {"losses": losses, "peak_gib": round(peak, 2), "seconds_a_step": spread(seconds)}


def losses_apart(step: "Step", state: Any, rows: Sequence[dict[str, np.ndarray]], ask: Ask) -> tuple[np.ndarray, float]:
    """Our losses on these batches, and a peer's largest relative difference, from the same weights."""
    named = jax.tree_util.tree_leaves_with_path(state.params)
    arrays: dict[str, Any] = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in named
    }
    arrays |= {f"{name}s": np.stack([batch[name] for batch in rows]) for name in ("input", "target")}
    take, losses = jax.jit(step), []
    for batch in rows:
        state, metrics = take(state, batch)
        losses.append(float(metrics["loss"]))
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.npz") for name in ("inputs", "outputs")}
        np.savez(paths["inputs"], **arrays)
        ask(ask="check", **paths)
        with np.load(paths["outputs"]) as saved:
            return np.array(losses), float(np.abs(np.array(losses) / saved["losses"] - 1).max())


@contextlib.contextmanager
def peer_libraries(
    python: Path | None, script: Path, libraries: Sequence[str], threads: int
) -> Iterator[dict[str, Ask]]:
    """Start the script once per library; yield the query functions by library, none without an interpreter."""
    with contextlib.ExitStack() as stack:
        asks: dict[str, Ask] = {}
        for library in libraries if python else ():
            options = ["--library", library, "--threads", str(threads)]
            ask = stack.enter_context(peer_process(python, script, *options))
            assert ask
            asks[library] = ask
        yield asks


def check_interpreter(python: Path | None, script: str) -> None:
    """Raise MissingFileError if --peers is not a file."""
    if python and not python.is_file():
        raise MissingFileError(f"--peers {python} is not a file: see the head of {script}")


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a section's result with date, machine and versions as JSON, and print its figures."""
    device = jax.devices()[0].device_kind if jax.default_backend() == "gpu" else machine()
    context = {"date": str(date.today()), "machine": device, "jax": version("jax"), "python": platform.python_version()}
    path.write_text(json.dumps(result | context, indent=2) + "\n")
    for row in result["figures"]:
        print(f"{'within ' if row['met'] else 'outside'} {row['what']}: {row['value']} (bound {row['wanted']})")
    print(path, flush=True)


def machine() -> str:
    """The processor's name and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
