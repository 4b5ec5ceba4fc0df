"""Plots of a classifier's results: ROC curves, confusion matrix, worst mistakes, first-layer filters."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxai.metrics.classification import (
    as_floats,
    as_texts,
    check_arguments,
    confusion_matrix,
    roc_curves,
    worst_mistakes,
)
from jaxai.plots.images import save_figure, save_png
from jaxai.typing import Array, Pixels


def save_classifier_scores(
    folder: Path, images: Pixels, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> None:
    """Write roc.png, confusion.png and mistakes.png for class probabilities [n, classes] into a folder."""
    plot_roc(folder / "roc.png", labels, probabilities, names)
    plot_confusion(folder / "confusion.png", confusion_matrix(labels, probabilities.argmax(1), len(names)), names)
    plot_mistakes(folder / "mistakes.png", np.asarray(images), labels, probabilities, names)


def plot_roc(
    path: str | os.PathLike[str],
    labels: np.ndarray | Array,
    probabilities: np.ndarray | Array,
    names: Sequence[str] | None = None,
) -> None:
    """Plot the `roc_curves` with their areas: in full, and enlarged at the corner where good classifiers differ.

    Arguments and errors as for `scores`. Classes without a curve are listed with area "none".
    """
    from sklearn.metrics import auc  # takes a second to import, and only some commands need it

    curves = roc_curves(labels, probabilities)
    classes = np.shape(probabilities)[1]
    called = as_texts(names, classes)
    colours = matplotlib.colormaps["tab10" if classes <= 10 else "turbo"]
    positions = range(classes) if classes <= 10 else np.linspace(0, 1, classes)
    columns = -(-classes // 20)
    figure = Figure(figsize=(9.5 + 1.5 * columns, 4.5), layout="constrained")
    whole, corner = figure.subplots(1, 2)
    for ax in (whole, corner):
        ax.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
        for c, position in enumerate(positions):
            if c in curves:
                label = f"{auc(*curves[c]):.5f}  {called[c]}"
                ax.plot(*curves[c], color=colours(position), label=label, linewidth=1.2)
            else:
                ax.plot([], [], " ", label=f"none  {called[c]}")
        ax.set_xlabel("false positive rate")
        ax.set_aspect("equal")
        ax.grid(alpha=0.3)
    whole.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="true positive rate", title="one class against the rest")
    # Three times the worst curve's distance from the corner, the only part where good classifiers differ.
    nearest = [np.hypot(false_rate, 1 - true_rate).min() for false_rate, true_rate in curves.values()]
    edge = float(np.clip(3 * max(nearest, default=0), 0.001, 0.5))
    corner.set(xlim=(-0.02 * edge, edge), ylim=(1 - edge, 1 + 0.02 * edge), title="upper left corner")
    corner.locator_params(nbins=5)
    figure.legend(*whole.get_legend_handles_labels(), loc="outside right upper", title="area", ncols=columns)
    save_figure(path, figure)


def plot_confusion(
    path: str | os.PathLike[str],
    confusion: np.ndarray | Sequence[Sequence[int]],
    names: Sequence[str] | None = None,
) -> None:
    """Plot a `confusion_matrix` [C, C] as counts, coloured by their fraction of the row's total. Empty rows are grey.

    ValueError unless the array is square with integers >= 0 and there is one name per class.
    """
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ValueError(f"confusion: {counts.dtype}{list(counts.shape)}, give counts of shape [C, C]")
    if not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
        raise ValueError(f"confusion: {counts.dtype} with minimum {counts.min()}, give integer counts, not shares")
    called = as_texts(names, len(counts))
    totals = counts.sum(1, keepdims=True)
    shares = np.ma.masked_array(counts / np.maximum(totals, 1), np.broadcast_to(totals == 0, counts.shape))
    side = 2 + 0.5 * len(counts)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    ax = figure.subplots()
    picture = ax.imshow(shares, matplotlib.colormaps["Blues"].with_extremes(bad="lightgrey"), vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        light_on_dark = counts[row, column] > 0.5 * totals[row, 0]
        colour = "white" if light_on_dark else "black" if count else "grey"
        ax.text(column, row, str(count), color=colour, ha="center", va="center", fontsize=8)
    rotation = 45 if max(map(len, called)) > 3 else 0
    ax.set_xticks(range(len(counts)), called, rotation=rotation, ha="right" if rotation else "center")
    ax.set_yticks(range(len(counts)), called)
    ax.set(xlabel="predicted", ylabel="true")
    figure.colorbar(picture, label="share of the true class", shrink=0.7)
    save_figure(path, figure)


def plot_mistakes(
    path: str | os.PathLike[str],
    images: np.ndarray | Array,
    labels: np.ndarray | Array,
    probabilities: np.ndarray | Array,
    names: Sequence[str] | None = None,
    count: int = 25,
) -> None:
    """Draw the `worst_mistakes` among uint8 images [N, height, width, 1 or 3].

    Above each stand the true and the predicted class, with their probabilities; the title counts the mistakes.
    ValueError for other images, and as `worst_mistakes`.
    """
    labels, probabilities = check_arguments(labels, probabilities)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images: {images.dtype}{list(images.shape)}, give uint8 [N, height, width, 1 or 3]")
    if len(images) != len(labels):
        raise ValueError(f"images: {len(images)}, labels: {len(labels)} of them, give one label for each image")
    called = as_texts(names, probabilities.shape[1])
    worst = worst_mistakes(labels, probabilities, count)
    columns = max(1, math.ceil(math.sqrt(len(worst))))
    rows = max(1, -(-len(worst) // columns))
    figure = Figure(figsize=(max(1.6 * columns, 3), 1.9 * rows + 0.4), layout="constrained")
    wrong = np.count_nonzero(probabilities.argmax(1) != labels)
    figure.suptitle(f"{wrong:,} mistakes among {len(labels):,}", fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, index in zip(axes, worst, strict=False):  # the last row may have empty cells
        _draw_mistake(ax, images[index], int(labels[index]), probabilities[index], called)
    save_figure(path, figure)


def _draw_mistake(ax: Axes, image: np.ndarray, label: int, probabilities: np.ndarray, called: list[str]) -> None:
    predicted = int(probabilities.argmax())
    ax.imshow(image if image.shape[-1] == 3 else image[..., 0], "gray", vmin=0, vmax=255)
    lines = (f"{word} {called[c]}  {probabilities[c]:.3f}" for word, c in (("true", label), ("predicted", predicted)))
    ax.set_title("\n".join(lines), fontsize=7)


def plot_filters(path: str | os.PathLike[str], kernel: np.ndarray | Array) -> None:
    """Draw a first layer's filters [kh, kw, 1 or 3, F] as a grid, row by row, each scaled to its own range.

    Grey levels are (w - min w) / (max w - min w), with the range taken over the weights [kh, kw, C] of one filter; a
    constant filter is grey. ValueError for other shapes and dtypes, and non-finite weights.
    """
    weights = as_floats("kernel", kernel)
    if weights.ndim != 4 or weights.shape[2] not in (1, 3) or not weights.size:
        raise ValueError(f"kernel: shape {list(weights.shape)}, give a first layer's [kh, kw, 1 or 3, F]")
    height, width, _, count = weights.shape
    low, high = weights.min((0, 1, 2), keepdims=True), weights.max((0, 1, 2), keepdims=True)
    levels = np.where(high > low, (weights - low) / np.where(high > low, high - low, 1), 0.5)
    scale, gap = max(1, 64 // max(height, width)), 6  # filters of about 64 pixels
    tiles = levels.transpose(3, 0, 1, 2).repeat(scale, 1).repeat(scale, 2)
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    cells = np.ones((rows * columns, height * scale + gap, width * scale + gap, 3))
    cells[:count, gap:, gap:] = tiles  # one channel becomes three equal ones
    cells = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 2, 1, 3, 4)
    canvas = cells.reshape(rows * (height * scale + gap), columns * (width * scale + gap), 3)
    pixels = np.rint(255 * np.pad(canvas, ((0, gap), (0, gap), (0, 0)), constant_values=1)).astype(np.uint8)
    save_png(path, pixels, scale=1)
