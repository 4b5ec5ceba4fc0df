"""The experiments' convolutions and poolings, forward and both gradients, against `jax.lax` and PyTorch."""

import dataclasses

from convolution import CASES, check, speed

from gpu_sections.session import Session

NAMES = (
    "conv 3x3",
    "conv 4x4, stride 2",
    "conv_transpose 4x4, stride 2",
    "conv 3x3, first layer",
    "depthwise 3x3",
    "max_pool 2x2, stride 2",
)


def run(session: Session) -> None:
    """Check the numerics of each case, then time it."""
    # float32 sums in another order; a GPU's TF32 rounds factors to ten bits.
    bound = 1e-5 if session.dry else 5e-3
    batch, rounds = (2, 1) if session.dry else (256, 3)
    with session.peer("convolution.py", "--library", "torch") as torch:
        asks = {"torch": torch} if torch else {}
        for name in NAMES[: 2 if session.dry else None]:
            if not session.enough(4, name):
                continue
            with session.guarded(name):
                case = dataclasses.replace(CASES[name], x=(batch, *CASES[name].x))
                found = check(name, case, asks)
                error = max(found["largest_difference"].values())
                if session.verified(f"{name}: largest difference", error, bound):
                    row = speed(name, case, asks, rounds)
                    rates = row["examples_per_second"]["jaxai"]
                    session.row(name, unit="examples/s", values=list(rates.values()))
                    for who, ratios in row["times_faster"].items():
                        session.row(f"{name}, times faster than {who}", values=list(ratios.values()))
