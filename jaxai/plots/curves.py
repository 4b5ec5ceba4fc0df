"""Curves of a run's metrics."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxai.plots.images import save_figure


def plot_curves(path: str | os.PathLike[str], metrics: str | os.PathLike[str], groups: Sequence[Sequence[str]]) -> None:
    """Plot named metrics of a ``metrics.jsonl`` against the step as PNG, one panel for each group of names.

    Each line of the file is a JSON object with ``step`` and any of the names. Incomplete lines and non-finite values
    are skipped, as are names and panels without values. FileNotFoundError if the file is missing, ValueError if it
    holds none of the names.
    """
    records = read_records(Path(metrics))
    panels = [[(name, *_series(records, name)) for name in group] for group in groups]
    panels = [[series for series in panel if series[1]] for panel in panels]
    panels = [panel for panel in panels if panel]
    if not panels:
        names = ", ".join(name for group in groups for name in group)
        raise ValueError(f"{metrics}: no values of {names or 'any name'}, give names that the file holds")
    figure = Figure(figsize=(7, 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        for name, steps, values in panel:
            ax.plot(steps, values, label=name.replace("_", " "), linewidth=1, marker="." if len(steps) < 30 else None)
        sizes = np.abs(np.concatenate([values for _, _, values in panel]))
        if sizes.max() > 10 * np.median(sizes):
            ax.set_yscale("symlog", linthresh=1)  # early values may be a hundred times larger
        ax.legend(fontsize="small")
        ax.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    save_figure(path, figure)


def read_records(path: Path) -> list[dict]:
    """The records of a ``metrics.jsonl``, without incomplete lines."""
    records = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # an incomplete last line of a killed run
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def _series(records: list[dict], name: str) -> tuple[list[int | float], list[int | float]]:
    pairs = [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
    pairs = [(step, value) for step, value in pairs if np.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]
