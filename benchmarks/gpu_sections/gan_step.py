"""A training step of the main job, with R1 and R2, and of the article's GAN, against PyTorch's fastest form.

The losses of the first step from the same weights, digits and noise must agree; then all train turn and turn about,
input and noise included: ours a step a call and ten, PyTorch plain, channels last and compiled. The host's share is the
time to start steps, input included, over the time that they take.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from gan_step import FORMS, Job, apart, asked, job, our_steps
from timing import NotAvailable, Turn, race, training_turns

from gpu_sections.programs import not_run
from gpu_sections.session import Session
from gpu_sections.training import peer_turns
from jaxai.data import Dataset, load
from jaxai.data.pipeline import batches

FASTER, HOST = 1.2, 0.3
"""Our steps over PyTorch's; the host's share."""
STEPS_PER_CALL = 10


def run(session: Session) -> None:
    """Both presets."""
    digits = load("mnist", "train", embedded_only=True)
    for name in ("default",) if session.dry else ("default", "article"):
        with session.guarded(name), session.peer("torch_gan_step.py", "--preset", name) as torch:
            if session.enough(15, name):
                compare(session, name, job(name), digits, torch)


def compare(
    session: Session, name: str, job: Job, digits: Dataset, torch: Callable[..., dict[str, Any]] | None
) -> None:
    """Losses, then a race, then the host's share."""
    steps, count = (2, 2) if session.dry else (20, STEPS_PER_CALL)

    def stream() -> Any:
        return batches(digits, job.preset.batch_size, seed=0)

    contenders: dict[str, Turn] = {
        f"jaxai, {n} a call": training_turns(job.step, job.init, stream(), steps, n) for n in (1, count)
    }
    ours = tuple(contenders)
    if torch:
        contenders |= peers(session, name, job, digits, torch, steps)
    seconds = race(contenders, **session.timing)
    best = min(ours, key=lambda who: np.median(seconds[who]))
    for who, values in seconds.items():
        session.row(f"{name}, {who}", unit="ms a step", values=[1e3 * x / steps for x in values])
    theirs = [who for who in seconds if who not in ours]
    if theirs:
        fastest = min(theirs, key=lambda who: np.median(seconds[who]))
        ratios = [a / b for a, b in zip(seconds[fastest], seconds[best], strict=True)]
        detail = f"{best} against {fastest}"
        session.row(f"{name}, steps/s over PyTorch's fastest", values=ratios, wanted=(">=", FASTER), detail=detail)
    shares = [host_share(job, stream(), steps) for _ in range(1 if session.dry else 5)]
    session.row(f"{name}, host's share of a step, one a call", values=shares, wanted=("<=", HOST))


def peers(
    session: Session, name: str, job: Job, digits: Dataset, torch: Callable[..., dict[str, Any]], steps: int
) -> dict[str, Turn]:
    """Turns of PyTorch's forms whose first step has our losses."""
    # float32 adds up in another order; a GPU's TF32 keeps ten bits of a factor, and a penalty is a sum of squares.
    bound = 1e-4 if session.dry else 2e-2
    inputs, states, losses = our_steps(job, digits, 1)
    found = {}
    for form in FORMS:
        try:
            theirs = asked(torch, form, states[0], **inputs, images=digits.images)
            error = max(apart({key: values[:1] for key, values in theirs.items()}, losses).values())
            if session.verified(f"{name}, {form}: losses of the first step", error, bound):
                found[form] = peer_turns(torch, steps, form=form)
                found[form](1)
        except NotAvailable as reason:
            found.pop(form, None)
            not_run(session, name, {f"PyTorch {form}": reason})
    return found


def host_share(job: Job, stream: Any, steps: int) -> float:
    """The time in which so many steps are started over that in which they are done."""
    take, state = jax.jit(job.step, donate_argnums=0), jax.jit(job.init)()
    state, metrics = take(state, next(stream))
    state, metrics = take(state, next(stream))
    jax.block_until_ready(metrics)
    before = time.perf_counter()
    for _ in range(steps):
        state, metrics = take(state, next(stream))
    started = time.perf_counter() - before
    jax.block_until_ready(metrics)
    return started / (time.perf_counter() - before)
