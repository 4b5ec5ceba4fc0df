"""Shared by the attention sections: random data, exact references, parallel compilation, PyTorch's contenders."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from derivatives import KINDS, Attend, Data
from timing import NotAvailable, Turn, build

from gpu_sections.session import Session, one_line

Shape = tuple[int, int, int, int]
"""B, T, N, H."""
SLICE = 2
"""Number of heads of the first sequence that are compared with the reference: heads are independent."""
BOUNDS = {"forward": 1e-2, "gradient": 2e-2, "jvp": 2e-2, "hvp": 3e-2, "penalty": 3e-2}
"""Bounds on errors in bfloat16, relative to the largest entry. Rounding to 8 bits changes a number by up to 2e-3 of
itself: weights and output in the forward pass, and one more factor in each derivative. On a CPU, which like a GPU sums
bfloat16 products in float32, all errors were 2e-3 to 4e-3."""
BITS = {"bfloat16": 1.0, "float16": 1 / 8, "float32": 1 / 4}
"""Factors on BOUNDS by dtype. float16 has three bits more; so have a GPU's TF32 products of float32, where a margin of
two remains although results are not rounded again."""


def random_data(shape: Shape, dtype: Any, segments: Any = None) -> Data:
    """Random q, k, v, weights and direction of this shape."""
    keys = jax.random.split(jax.random.key(0), 7)
    q, k, v, w, *direction = (jax.random.normal(key, shape, dtype) for key in keys)
    return Data((q, k, v), w, tuple(direction), segments)


def sliced(tree: Any) -> Any:
    """The first sequence and SLICE heads of arrays [B, T, N, H] in float32; leaves of other ranks are dropped."""
    return [x[:1, :, :SLICE].astype(jnp.float32) for x in jax.tree.leaves(tree) if x.ndim == 4]


def exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute float32 products in float32: a GPU's default is TF32."""

    def precisely(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return precisely


def reference(kind: str, attend: Attend, data: Data, segments: Any = None) -> list[Any]:
    """The reference results on the slice of the data, in float32."""
    q, k, v, w, *direction = sliced((data.qkv, data.w, data.direction))
    part = Data((q, k, v), w, tuple(direction), segments)
    program, _ = build(exact(partial(KINDS[kind], attend)), part)
    return sliced(program(part))


def largest_error(got: Sequence[Any], wanted: Sequence[Any]) -> float:
    """The largest difference, relative to the largest entry of its array; infinite if any value is not finite."""
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        error = float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30))
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def compile_all(programs: Mapping[str, tuple[Callable[..., Any], Any]]) -> dict[str, tuple[Any, float] | Exception]:
    """Compile each function for its argument, in parallel; return (program, seconds) or the exception by name."""

    def one(named: tuple[Callable[..., Any], Any]) -> tuple[Any, float] | Exception:
        try:
            return build(*named)
        except Exception as error:  # libraries raise exceptions of many types
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(programs, pool.map(one, programs.values()), strict=True))


def not_run(session: Session, what: str, reasons: Mapping[str, Any]) -> None:
    """Append a row for each contender that isn't available."""
    for name, reason in reasons.items():
        session.row(f"{what} against {name}", status="not run", detail=one_line(reason))


def torch_contenders(
    session: Session,
    torch: Callable[..., dict[str, Any]] | None,
    ops: Sequence[str],
    data: Data,
    wanted: Mapping[str, list[Any]],
    *,
    what: str,
    **call: Any,
) -> dict[str, dict[str, Turn]]:
    """By kind, turns of PyTorch's ops whose output and gradients are correct; append a row for each other op.

    ``call``: ``causal``, and ``pattern`` for FlexAttention.
    """
    turns: dict[str, dict[str, Turn]] = {kind: {} for kind in ("forward", "gradient")}
    batch, tokens, heads, size = data.w.shape
    sizes = {"batch": batch, "tokens": tokens, "heads": heads, "head_size": size, "dtype": data.w.dtype.name}
    for op in ops if torch else ():
        assert torch
        try:
            found = checked_by_torch(torch, op, data, call)
            bound = BOUNDS["gradient"] * BITS[data.w.dtype.name]
            error = largest_error(found, [*wanted["forward"], *wanted["gradient"]][: len(found)])
            if not session.verified(f"{what}, {op}: error", error, bound):
                continue
            for kind in turns if len(found) > 1 else ("forward",):
                ask = partial(torch, ask="time", op=op, kind=kind, **sizes, **call)
                ask(repeats=1)  # compiles, and fails here if memory is short
                turns[kind][op] = lambda repeats, ask=ask: ask(repeats=repeats)["seconds"]
        except NotAvailable as reason:
            not_run(session, what, {f"PyTorch's {op}": reason})
    return turns


def checked_by_torch(torch: Callable[..., dict[str, Any]], op: str, data: Data, call: dict[str, Any]) -> list[Any]:
    """PyTorch's output and gradients on the slice; on a CPU, FlexAttention has no gradients."""
    q, k, v, w = sliced((data.qkv, data.w))
    grads = op != "flex" or jax.default_backend() == "gpu"
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.npz") for name in ("inputs", "outputs")}
        np.savez(paths["inputs"], q=q, k=k, v=v, w=w)
        torch(ask="check", op=op, dtype=data.w.dtype.name, grads=grads, **paths, **call)
        with np.load(paths["outputs"]) as saved:
            return [saved[name] for name in ("out", "dq", "dk", "dv") if name in saved.files]
