"""Logs of a training run: metrics.jsonl, the progress bar, TensorBoard."""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxai.distributed.processes import first_process

logger = logging.getLogger(__name__)


class MetricsLog:
    """Append one JSON object per step to metrics.jsonl, and optionally to TensorBoard.

    Each metric is written twice: rounded as ``"loss": 0.693``, exact as ``"loss_hex": "0x1.62e43p-1"``. ``after`` is
    the step that the run resumes from: lines of later steps, left by an interrupted run, are dropped.
    """

    def __init__(self, path: Path, after: int, *, tensorboard: bool = False) -> None:
        keep_until(path, after)
        self._file = path.open("a", buffering=1)  # line-buffered, so that a run can be followed
        self._events = event_writer(path.parent / "tensorboard", after) if tensorboard else None

    def close(self) -> None:
        self._file.close()
        if self._events:
            self._events.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line: ``step`` and the metrics (float32 scalars), rounded and exact."""
        line: dict[str, Any] = {"step": step}
        for name, value in metrics.items():
            line[name] = float(np.format_float_positional(np.float32(value), 6, unique=False, fractional=False))
        line |= {f"{name}_hex": float(value).hex() for name, value in metrics.items()}
        self._file.write(json.dumps(line) + "\n")
        if self._events:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flush every line to disk; call before saving a checkpoint, which relies on them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._events:
            self._events.flush()


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of steps after ``step`` and incomplete lines. Log a warning if earlier lines are missing."""
    if not path.exists():
        if step > 0:
            logger.warning("%s is missing: the metrics up to step %d are lost", path, step)
        return
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if step_of(line) <= step]
    if step > 0 and (not kept or step_of(kept[-1]) < step):
        last = int(step_of(kept[-1])) if kept else 0
        logger.warning("%s is damaged: the metrics after step %d up to %d are lost", path, last, step)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)


def step_of(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinity for an incomplete line."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def event_writer(folder: Path, after: int) -> Any:
    """A TensorBoard writer (extra: tensorboard) that hides events an interrupted run wrote after step ``after``."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=after + 1)


class Progress:
    """A progress bar of steps (steps/s, time left) with the metrics named in ``show``, shown by process 0 only."""

    def __init__(self, label: str, start: int, stop: int, show: Sequence[str]) -> None:
        layout = "{desc} {percentage:3.0f}%|{bar:20}| {n}/{total} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        interval = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file needs no animation
        options = {"unit": " steps", "bar_format": layout, "mininterval": interval, "disable": not first_process()}
        self._bar = tqdm(total=stop, initial=start, desc=label, **options)
        self._show = show

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Advance the bar to ``step`` and show these metrics."""
        self._bar.set_postfix_str(self._text(metrics), refresh=False)
        self._bar.update(step - self._bar.n)

    def line(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print a permanent line with these metrics above the bar."""
        if not self._bar.disable:
            self._bar.write(f"step {step}: {self._text(metrics)}", file=sys.stderr)

    def _text(self, metrics: Mapping[str, float]) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {metrics[name]:.4f}" for name in self._show if name in metrics)

    def close(self) -> None:
        self._bar.close()
