"""A training step of char-rnn's LSTM against PyTorch's, which uses cuDNN on a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
from char_rnn import BATCH, LENGTH, STEP, STEPS_PER_CALL, VOCABULARY, first_state
from timing import Turn, losses_apart, race, training_turns

from gpu_sections.session import Session
from gpu_sections.training import peer_turns
from jaxai.data.text.corpus import streams


def run(session: Session) -> None:
    """Compare losses, then times."""
    steps, checked = (2, 2) if session.dry else (20, 10)
    count = min(steps, STEPS_PER_CALL)

    def stream() -> Any:
        return streams(np.random.default_rng(0).integers(0, VOCABULARY, 1_000_000), BATCH, LENGTH)

    contenders: dict[str, Turn] = {f"jaxai, {count}/call": training_turns(STEP, first_state, stream(), steps, count)}
    (ours,) = contenders
    with session.peer("torch_char_rnn.py") as torch:
        if torch:
            with session.guarded("against PyTorch"):
                contenders |= peer(session, torch, stream(), steps, checked)
        seconds = race(contenders, **session.timing)
    for who, values in seconds.items():
        session.row(who, unit="characters/s", values=[steps * BATCH * LENGTH / x for x in values])
    if "PyTorch" in seconds:
        ratios = [a / b for a, b in zip(seconds["PyTorch"], seconds[ours], strict=True)]
        session.row("characters/s over PyTorch's", values=ratios)


def peer(
    session: Session, torch: Callable[..., dict[str, Any]], stream: Any, steps: int, checked: int
) -> dict[str, Turn]:
    """Turns of PyTorch's training; empty if its losses differ from ours."""
    _, error = losses_apart(STEP, first_state(), [next(stream) for _ in range(checked)], torch)
    # float32 sums in another order; TF32 rounds factors to ten bits.
    right = session.verified("losses of the first steps", error, 1e-4 if session.dry else 1e-2)
    return {"PyTorch": peer_turns(torch, steps)} if right else {}
