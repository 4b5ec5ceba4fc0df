"""How good a classifier is: scores, ROC curves and confusion matrix from labels and probabilities, and their pictures.

Everything runs on the host, on scikit-learn. Labels are integers [N] in 0 ... C-1, probabilities floats [N, C] whose
rows sum to 1; the predicted class is the one of the highest probability, the first of several. Classes are called by
``names`` where these are given, else by their numbers. The pictures are PNG files; an existing one is replaced.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn import metrics

from jaxai.pictures import save_figure, save_png
from jaxai.typing import Array, Int

Curve = tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]
"""False positive rates and true positive rates, both rising from 0 to 1."""

QUOTIENTS: dict[str, Callable[..., Any]] = {
    "precision": metrics.precision_score,
    "recall": metrics.recall_score,
    "f1": metrics.f1_score,
}
ROUNDING = 1e-2  # a row's sum may be so far from 1: a softmax in bfloat16 is off by up to 0.6 %


def scores(
    labels: np.ndarray | Array, probabilities: np.ndarray | Array, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Everything at once for integer labels [N] and probabilities [N, C], ready for JSON: numbers, lists, None.

    With TP, FP and FN counted for each class: precision = TP / (TP + FP), recall = TP / (TP + FN), f1 = 2 TP / (2 TP +
    FP + FN), and ``auc`` the area under `roc_curves`. ``*_per_class`` are lists over C; ``*_macro`` their mean over the
    classes that have examples; ``*_micro`` takes TP, FP and FN summed over all classes, so all three are ``accuracy``.
    A class with examples that is never predicted has precision 0. ``missing_classes`` have no examples: their recall
    and auc are None, and precision and f1 too, unless they are predicted; then these are 0. Where all labels are one
    class, auc is None. ``confusion`` is `confusion_matrix`, ``examples_per_class`` its sum over columns.

    ValueError for labels outside 0 ... C-1 or of another length, and for rows that don't sum to 1.

    >>> result = scores(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), ["cat", "dog"])
    >>> result["confusion"], result["recall_per_class"], result["precision_macro"], result["auc_macro"]
    ([[1, 0], [1, 1]], [1.0, 0.5], 0.75, 1.0)
    """
    labels, probabilities = _check(labels, probabilities)
    classes = probabilities.shape[1]
    called = list(range(classes)) if names is None else _check_names(names, classes)
    predicted = probabilities.argmax(1)
    confusion = confusion_matrix(labels, predicted, classes)
    examples = confusion.sum(1)
    present, touched = examples > 0, examples + confusion.sum(0) > 0
    result: dict[str, Any] = {
        "classes": called,
        "examples": len(labels),
        "examples_per_class": examples.tolist(),
        "missing_classes": [called[c] for c in np.flatnonzero(~present)],
        "accuracy": float(np.mean(predicted == labels)),
    }
    defined = {"precision": touched, "recall": present, "f1": touched}
    for name, score in QUOTIENTS.items():
        score = partial(score, labels, predicted, labels=range(classes), zero_division=0)
        values = score(average=None)
        result[f"{name}_macro"] = float(values[present].mean())
        result[f"{name}_micro"] = float(score(average="micro"))
        result[f"{name}_per_class"] = [float(values[c]) if defined[name][c] else None for c in range(classes)]
    areas = {c: float(metrics.auc(*curve)) for c, curve in roc_curves(labels, probabilities).items()}
    result["auc_macro"] = float(np.mean(list(areas.values()))) if areas else None
    result["auc_per_class"] = [areas.get(c) for c in range(classes)]
    result["confusion"] = confusion.tolist()
    return result


def confusion_matrix(
    labels: np.ndarray | Array, predicted: np.ndarray | Array, classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How often each class (row) was taken for each class (column): M[i, j] = |{n: labels_n = i, predicted_n = j}|.

    Both are integers [N] in 0 ... ``classes`` - 1, else ValueError; also for ``classes`` < 1.
    """
    if classes < 1:
        raise ValueError(f"classes={classes}: must be at least 1")
    labels, predicted = _check_classes("labels", labels, classes), _check_classes("predicted", predicted, classes)
    if len(labels) != len(predicted):
        raise ValueError(f"labels: {len(labels)}, predicted: {len(predicted)} of them, give one for each example")
    return metrics.confusion_matrix(labels, predicted, labels=range(classes))


def roc_curves(labels: np.ndarray | Array, probabilities: np.ndarray | Array) -> dict[int, Curve]:
    """One class against the rest, from integer labels [N] and probabilities [N, C]: points (FPR, TPR), float64.

    For every threshold t on the class's probability, TPR(t) = share of its examples with p >= t, FPR(t) = share of all
    other examples with p >= t. Points inside a straight piece are dropped. The area under the curve is the probability
    that a random example of the class gets a higher p than a random other one, ties counting half. A class without
    examples, or without others, has no curve and is left out.

    Source: Fawcett 2006, "An introduction to ROC analysis", Pattern Recognition Letters 27. ValueError as `scores`.
    """
    labels, probabilities = _check(labels, probabilities)
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    with_curve = np.flatnonzero((counts > 0) & (counts < len(labels))).tolist()
    return {c: metrics.roc_curve(labels == c, probabilities[:, c])[:2] for c in with_curve}


def worst_mistakes(
    labels: np.ndarray | Array, probabilities: np.ndarray | Array, count: int
) -> Int[np.ndarray, " mistakes"]:
    """Indices of at most ``count`` wrongly classified examples, the highest probability of a wrong class first.

    Labels are integers [N], probabilities [N, C]. Equals keep their order. ValueError as `scores`, and for
    ``count`` < 1.
    """
    labels, probabilities = _check(labels, probabilities)
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    mistakes = np.flatnonzero(probabilities.argmax(1) != labels)
    return mistakes[np.argsort(-probabilities[mistakes].max(1), kind="stable")[:count]]


def plot_roc(
    path: str | os.PathLike[str],
    labels: np.ndarray | Array,
    probabilities: np.ndarray | Array,
    names: Sequence[str] | None = None,
) -> None:
    """Draw the `roc_curves` with their areas, once whole and once the corner where good classifiers differ.

    Arguments and errors as for `scores`. Classes without a curve stand in the legend with "none" for the area.
    """
    curves = roc_curves(labels, probabilities)
    classes = np.shape(probabilities)[1]
    called = _texts(names, classes)
    colours = matplotlib.colormaps["tab10" if classes <= 10 else "turbo"]
    positions = range(classes) if classes <= 10 else np.linspace(0, 1, classes)
    columns = -(-classes // 20)
    figure = Figure(figsize=(9.5 + 1.5 * columns, 4.5), layout="constrained")
    whole, corner = figure.subplots(1, 2)
    for ax in (whole, corner):
        ax.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
        for c, position in enumerate(positions):
            if c in curves:
                label = f"{metrics.auc(*curves[c]):.5f}  {called[c]}"
                ax.plot(*curves[c], color=colours(position), label=label, linewidth=1.2)
            else:
                ax.plot([], [], " ", label=f"none  {called[c]}")
        ax.set_xlabel("false positive rate")
        ax.set_aspect("equal")
        ax.grid(alpha=0.3)
    whole.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="true positive rate", title="one class against the rest")
    # Three times as far as the worst curve's nearest point to the corner: good classifiers differ there alone.
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
    """Draw a `confusion_matrix` [C, C]: the counts, on colours that show each row's shares. Empty rows are grey.

    ValueError for arrays that are not square with integers >= 0, and for another number of names.
    """
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ValueError(f"confusion: {counts.dtype}{list(counts.shape)}, give counts of shape [C, C]")
    if not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
        raise ValueError(f"confusion: {counts.dtype} with minimum {counts.min()}, give integer counts, not shares")
    called = _texts(names, len(counts))
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
    """Draw the `worst_mistakes` among uint8 images [N, height, width, 1 or 3], with their true and predicted classes.

    Above each: the true class and its probability, then the predicted one and its. Where nothing is wrong the picture
    says so. ValueError for other images, and as `worst_mistakes`.
    """
    labels, probabilities = _check(labels, probabilities)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images: {images.dtype}{list(images.shape)}, give uint8 [N, height, width, 1 or 3]")
    if len(images) != len(labels):
        raise ValueError(f"images: {len(images)}, labels: {len(labels)} of them, give one label for each image")
    called = _texts(names, probabilities.shape[1])
    worst = worst_mistakes(labels, probabilities, count)
    columns = max(1, math.ceil(math.sqrt(len(worst))))
    rows = max(1, -(-len(worst) // columns))
    figure = Figure(figsize=(max(1.6 * columns, 3), 1.9 * rows + 0.4), layout="constrained")
    wrong = np.count_nonzero(probabilities.argmax(1) != labels)
    figure.suptitle(f"{wrong:,} mistakes among {len(labels):,}", fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, index in zip(axes, worst, strict=False):  # the last row may have places left
        _draw_mistake(ax, images[index], int(labels[index]), probabilities[index], called)
    save_figure(path, figure)


def _draw_mistake(ax: Axes, image: np.ndarray, label: int, probabilities: np.ndarray, called: list[str]) -> None:
    predicted = int(probabilities.argmax())
    ax.imshow(image if image.shape[-1] == 3 else image[..., 0], "gray", vmin=0, vmax=255)
    lines = (f"{word} {called[c]}  {probabilities[c]:.3f}" for word, c in (("true", label), ("taken for", predicted)))
    ax.set_title("\n".join(lines), fontsize=7)


def plot_filters(path: str | os.PathLike[str], kernel: np.ndarray | Array) -> None:
    """Draw a first layer's filters [kh, kw, 1 or 3, F] as a grid, row by row, each scaled to its own range.

    Shown is (w - min w) / (max w - min w), the range being over one filter's kh * kw * C weights; a constant filter is
    grey. ValueError for other shapes and dtypes, and weights that are not finite.
    """
    weights = _floats("kernel", kernel)
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


def _check(labels: np.ndarray | Array, probabilities: np.ndarray | Array) -> tuple[np.ndarray, np.ndarray]:
    """Integer labels [N] and float64 probabilities [N, C], or ValueError."""
    probabilities = _floats("probabilities", probabilities)
    shape = list(probabilities.shape)
    if probabilities.ndim != 2 or shape[1] < 2:
        raise ValueError(f"probabilities: shape {shape}, give [N, C >= 2]; of a single p give [1 - p, p]")
    sums = probabilities.sum(1)
    wrong = (np.abs(sums - 1) > ROUNDING) | (probabilities.min(1) < -ROUNDING)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"probabilities: row {row} has the sum {sums[row]:.4g} and the minimum {probabilities[row].min():.4g}, "
            "give rows >= 0 that sum to 1; of logits give jax.nn.softmax(logits, axis=-1)"
        )
    labels = _check_classes("labels", labels, shape[1])
    if len(labels) != shape[0]:
        raise ValueError(f"labels: {len(labels)}, probabilities: shape {shape}, give one row for each label")
    return labels, probabilities


def _check_classes(name: str, values: np.ndarray | Array, classes: int) -> np.ndarray:
    """Integers [N >= 1] in 0 ... classes - 1, or ValueError."""
    values = np.asarray(values)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"{name}: {values.dtype}{list(values.shape)}, give integers of shape [N]; of one-hot rows take argmax(-1)"
        )
    if not len(values):
        raise ValueError(f"{name}: none of them, give at least one example")
    if values.min() < 0 or values.max() >= classes:
        raise ValueError(f"{name}: values {values.min()} ... {values.max()}, give 0 ... {classes - 1}, one per class")
    return values.astype(np.int64)


def _floats(name: str, given: np.ndarray | Array) -> np.ndarray:
    """The array as float64, or ValueError where it is not of finite floats."""
    array = np.asarray(given)
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        raise ValueError(f"{name}: {array.dtype}{list(array.shape)}, give floating-point numbers")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: NaN or infinity among the values, check the parameters of the network")
    return array


def _check_names(names: Sequence[str], classes: int) -> list[str]:
    if len(names) != classes:
        raise ValueError(f"names: {len(names)} of them, give one for each of the {classes} classes")
    return list(names)


def _texts(names: Sequence[str] | None, classes: int) -> list[str]:
    """What pictures call the classes; a dollar sign is one, and doesn't begin a formula."""
    called = [str(c) for c in range(classes)] if names is None else _check_names(names, classes)
    return [name.replace("$", r"\$") for name in called]
