"""Attention in bfloat16, full and causal, against jax.nn's cuDNN, tokamax and PyTorch's backends.

The forward pass counts 4 B N T T H operations, with the gradient 3.5 times as many, and half if causal. "gradient" is
sum(out * w) with its gradient in q, k and v. Each program is compared with the reference on a slice of the heads before
it is timed.
"""

import importlib.util
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from derivatives import KINDS, Attend, Data
from timing import Turn, race, turns

from gpu_sections.programs import (
    BOUNDS,
    Shape,
    compile_all,
    largest_error,
    not_run,
    random_data,
    reference,
    sliced,
    torch_contenders,
)
from gpu_sections.session import Session
from jaxai.attention import dot_product_attention, reference_attention
from jaxai.distributed.peaks import PEAKS

SHAPES = ((4, 4096, 16, 128), (16, 1024, 32, 64), (1, 16384, 16, 128), (32, 512, 12, 64))
DRY = ((2, 64, 3, 16),)
OPS = ("sdpa_flash", "sdpa_cudnn", "sdpa_efficient")
CUDNN = {"forward": 1.05, "gradient": 1.10}
TORCH = 1.15
"""Upper bounds on jaxai's time relative to the peer's."""


def run(session: Session) -> None:
    """Compare every shape, full and causal."""
    with session.peer("torch_attention.py") as torch:
        for shape, causal in itertools.product(DRY if session.dry else SHAPES, (False, True)):
            what = f"{'causal' if causal else 'full'} {list(shape)}"
            if session.enough(12, what):
                with session.guarded(what):
                    compare(session, torch, shape, causal, what)


def plain(attend: Callable[..., jax.Array], causal: bool) -> Attend:
    """Adapt ``attend`` to a signature whose segments it ignores."""
    return lambda q, k, v, segments: attend(q, k, v, is_causal=causal)


def libraries() -> dict[str, Callable[..., jax.Array]]:
    """The JAX implementations by name, jaxai first."""
    found = {"jaxai": dot_product_attention, "cuDNN": partial(jax.nn.dot_product_attention, implementation="cudnn")}
    if importlib.util.find_spec("tokamax"):
        import tokamax  # pyright: ignore[reportMissingImports]

        found["tokamax"] = tokamax.dot_product_attention
    return found


def compare(
    session: Session, torch: Callable[..., dict[str, Any]] | None, shape: Shape, causal: bool, what: str
) -> None:
    """Check the numerics of one shape, then time its forward pass and gradient."""
    data = random_data(shape, jnp.bfloat16)
    kinds = ("forward", "gradient")
    wanted = {kind: reference(kind, plain(reference_attention, causal), data) for kind in kinds}
    programs = compile_all(
        {
            f"{kind} {name}": (partial(KINDS[kind], plain(attend, causal)), data)
            for kind in kinds
            for name, attend in libraries().items()
        }
    )
    theirs = torch_contenders(session, torch, OPS, data, wanted, what=what, causal=causal)
    for kind in kinds:
        contenders, reasons, compiled = {}, {}, 0.0
        for name in libraries():
            made = programs[f"{kind} {name}"]
            if isinstance(made, Exception):
                if name == "jaxai":
                    raise made
                reasons[name] = made
                continue
            program, seconds = made
            try:
                error = largest_error(sliced(program(data)), wanted[kind])
            except RuntimeError as failure:  # such as out of memory
                if name == "jaxai":
                    raise
                reasons[name] = failure
                continue
            compiled = seconds if name == "jaxai" else compiled
            if session.verified(f"{kind} {what}, {name}: error", error, BOUNDS[kind]):
                contenders[name] = turns(program, data)
        not_run(session, f"{kind} {what}", reasons)
        if "jaxai" in contenders:
            report(session, data, kind, causal, f"{kind} {what}", contenders | theirs[kind], compiled)


def report(
    session: Session, data: Data, kind: str, causal: bool, what: str, contenders: dict[str, Turn], compiled: float
) -> None:
    """Time all contenders; report jaxai's rate and its time relative to each peer."""
    seconds = race(contenders, **session.timing)
    batch, tokens, heads, size = data.w.shape
    count = 4 * batch * heads * tokens**2 * size * (3.5 if kind == "gradient" else 1) / (2 if causal else 1)
    rates = {name: [count / value / 1e12 for value in values] for name, values in seconds.items()}
    median = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    peak = PEAKS.get(session.device)
    detail = [f"{count / median['jaxai'] / peak:.0%} of the peak"] if peak else []
    detail += [f"{name} {count / value / 1e12:.4g}" for name, value in median.items() if name != "jaxai"]
    detail.append(f"compiled in {compiled:.1f} s, in parallel with others")
    session.row(what, unit="TFLOP/s", values=rates["jaxai"], detail="; ".join(detail))

    def over(name: str, called: str, bound: float | None) -> None:
        ratios = [a / b for a, b in zip(seconds["jaxai"], seconds[name], strict=True)]
        wanted: Any = bound and ("<=", bound)
        session.row(f"{what}, time over {called}", values=ratios, wanted=wanted)

    if "cuDNN" in seconds:
        over("cuDNN", "cuDNN's", CUDNN[kind])
    if "tokamax" in seconds:
        over("tokamax", "tokamax's", None)
    if best := min((name for name in OPS if name in seconds), key=lambda name: median[name], default=None):
        over(best, f"PyTorch's best ({best})", TORCH)
