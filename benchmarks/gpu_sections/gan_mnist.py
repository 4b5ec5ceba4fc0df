"""`experiments/gan_mnist.py --preset gpu`: as many steps as fit into the time limit, then the scores."""

import time
from typing import Any

from gpu_sections.session import Session
from gpu_sections.training import experiment

FIRST, MARGIN = 100, 15.0
"""Steps of the first run, which measures their rate; seconds reserved for start and scores of the second."""


def run(session: Session) -> None:
    """Run a few steps; if time permits, resume the same run with more steps."""
    workdir = session.out / "gan_mnist" / session.started.replace(":", "-")
    options = [] if session.data_dir else ["--no-full-data"]
    options += ["--preset", "debug"] if session.dry else ["--preset", "gpu"]
    first = 4 if session.dry else FIRST
    before = time.monotonic()
    summary = experiment(session, "gan_mnist", workdir, *options, "--steps", str(first))
    report(session, summary)
    overhead = time.monotonic() - before - summary["train_seconds"]
    rate = summary["steps"] / max(summary["train_seconds"], 1e-3)
    steps = 0 if session.dry else int(rate * (session.left - overhead - MARGIN)) // 100 * 100
    if steps > first:
        report(session, experiment(session, "gan_mnist", workdir, *options, "--steps", str(steps)))


def report(session: Session, summary: dict[str, Any]) -> None:
    """Append rows of speed and scores."""
    detail = f"{summary['steps']} steps, {summary['data']}"
    rate = summary["images_seen"] / max(summary["train_seconds"], 1e-3)
    session.row("training, including plots and checkpoints", rate, "images/s", detail=detail)
    session.row("compilation", summary["compile_seconds"], "s")
    for name, value in summary.items():
        if isinstance(value, float) and not name.endswith("_seconds"):
            session.row(name, value, detail=detail)
