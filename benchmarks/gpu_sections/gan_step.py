"""A training step of the digit GAN with R1 and R2, and of the Keras baseline's GAN, against PyTorch's fastest form.

The losses of the first step from the same weights, digits and noise must agree; then all contenders train in turns,
input and noise included: jaxai with one and ten steps per call, PyTorch plain, channels last and compiled. The host's
share is the time to dispatch the steps, input included, divided by the time until they are done.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from gan_step import FORMS, Job, apart, asked, job, our_steps
from timing import NotAvailable, Turn, race, training_turns

from gpu_sections.programs import not_run
from gpu_sections.session import Session
from gpu_sections.training import peer_turns
from jaxai.data import ImageDataset, load
from jaxai.data.pipeline import batches

FASTER, HOST = 1.2, 0.3
"""Lower bound on steps/s relative to PyTorch's; upper bound on the host's share."""
STEPS_PER_CALL = 10


def run(session: Session) -> None:
    """Compare both presets."""
    digits = load("mnist", "train", embedded_only=True)
    for name in ("default",) if session.dry else ("default", "article"):
        if session.enough(25, name):
            with session.guarded(name):
                compare(session, name, job(name), digits)


def compare(session: Session, name: str, job: Job, digits: ImageDataset) -> None:
    """Time jaxai's step and the host's share, then compare with each form of PyTorch's."""
    steps, count = (2, 2) if session.dry else (20, STEPS_PER_CALL)

    def stream() -> Any:
        return batches(digits, job.preset.batch_size, seed=0)

    ours: dict[str, Turn] = {
        f"jaxai, {n}/call": training_turns(job.step, job.init, stream(), steps, n) for n in (1, count)
    }
    seconds = race(ours, **session.timing)
    for who, values in seconds.items():
        session.row(f"{name}, {who}", unit="ms/step", values=[1e3 * x / steps for x in values])
    best = min(ours, key=lambda who: np.median(seconds[who]))
    shares = [host_share(job, stream(), steps) for _ in range(1 if session.dry else 5)]
    session.row(f"{name}, host's share of a step, one/call", values=shares, wanted=("<=", HOST))
    ratios: dict[str, list[float]] = {}
    with session.peer("torch_gan_step.py", "--preset", name) as torch:
        for form, turn in peers(session, name, job, digits, torch, steps) if torch else ():
            seconds = race({best: ours[best], form: turn}, **session.timing)
            session.row(f"{name}, PyTorch {form}", unit="ms/step", values=[1e3 * x / steps for x in seconds[form]])
            ratios[form] = [a / b for a, b in zip(seconds[form], seconds[best], strict=True)]
    if ratios:
        fastest = min(ratios, key=lambda form: np.median(ratios[form]))
        detail = f"{best} against {fastest}, of {', '.join(ratios)}"
        what = f"{name}, steps/s over PyTorch's fastest"
        session.row(what, values=ratios[fastest], wanted=(">=", FASTER), detail=detail)


def peers(
    session: Session, name: str, job: Job, digits: ImageDataset, torch: Callable[..., dict[str, Any]], steps: int
) -> Iterator[tuple[str, Turn]]:
    """Yield turns of each PyTorch form whose first losses agree with ours, lazily: the last form compiles for long."""
    # float32 sums in another order; a GPU's TF32 rounds factors to ten bits, and a penalty is a sum of squares.
    bound = 1e-4 if session.dry else 2e-2
    inputs, states, losses = our_steps(job, digits, 1)
    for form in FORMS:
        if form == "compiled" and not session.enough(30, f"{name}, {form}"):
            continue
        try:
            theirs = asked(torch, form, states[0], **inputs, images=digits.images)
            error = max(apart({key: values[:1] for key, values in theirs.items()}, losses).values())
            if session.verified(f"{name}, {form}: losses of the first step", error, bound):
                turn = peer_turns(torch, steps, form=form)
                turn(1)
                yield form, turn
        except NotAvailable as reason:
            not_run(session, name, {f"PyTorch {form}": reason})


def host_share(job: Job, stream: Any, steps: int) -> float:
    """The time to dispatch ``steps`` steps, divided by the time until they are done."""
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
