"""Derivatives of higher order in bfloat16: times relative to the gradient or forward pass, and memory."""

from functools import partial

import jax.numpy as jnp
from derivatives import KINDS
from timing import race, turns

from gpu_sections.attention import plain
from gpu_sections.programs import BOUNDS, compile_all, largest_error, random_data, reference, sliced
from gpu_sections.session import Session
from jaxai.attention import dot_product_attention, reference_attention

SHAPE, DRY = (2, 4096, 16, 128), (1, 48, 2, 16)
BASES = {"jvp": "forward", "hvp": "gradient", "penalty": "gradient"}
HVP = 4.0
"""Upper bound on the time of a Hessian-vector product relative to the gradient's."""


def run(session: Session) -> None:
    """Measure causal, then full attention."""
    for causal in (True,) if session.dry else (True, False):
        what = f"{'causal' if causal else 'full'} {list(DRY if session.dry else SHAPE)}"
        if session.enough(12, what):
            with session.guarded(what):
                compare(session, causal, what)


def compare(session: Session, causal: bool, what: str) -> None:
    """Check numerics; report times, and temporaries as XLA counts them."""
    batch, tokens, heads, _ = shape = DRY if session.dry else SHAPE
    data = random_data(shape, jnp.bfloat16)
    made = compile_all({kind: (partial(KINDS[kind], plain(dot_product_attention, causal)), data) for kind in KINDS})
    contenders, matrix = {}, batch * heads * tokens**2 * 2 / 2**20
    for kind, found in made.items():
        with session.guarded(f"{kind} {what}"):
            if isinstance(found, Exception):
                raise found
            program, seconds = found
            error = largest_error(sliced(program(data)), reference(kind, plain(reference_attention, causal), data))
            if session.verified(f"{kind} {what}: error", error, BOUNDS[kind]):
                contenders[kind] = turns(program, data)
                memory = program.memory_analysis().temp_size_in_bytes / 2**20
                detail = f"bfloat16 scores: {matrix:.4g} MiB; compiled in {seconds:.1f} s, in parallel with others"
                session.row(f"{kind} {what}, temporaries", memory, "MiB", wanted=("<=", matrix), detail=detail)
    times = race(contenders, **session.timing)
    for kind, base in BASES.items():
        if kind in times and base in times:
            ratios = [a / b for a, b in zip(times[kind], times[base], strict=True)]
            wanted = ("<=", HVP) if kind == "hvp" else None
            detail = f"{1e3 * min(times[kind]):.4g} ms"
            session.row(f"{kind} {what}, time over its {base}", values=ratios, wanted=wanted, detail=detail)
