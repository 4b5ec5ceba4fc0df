"""Classification metrics: scores, ROC curves and confusion matrix from labels and probabilities.

Everything runs on the host, with scikit-learn. Labels are integers [N] in 0 ... C-1, probabilities floats [N, C] whose
rows sum to 1; the predicted class is the first one with the highest probability. Classes are identified by ``names``,
or by their numbers if no names are given.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxai.typing import Array, Int

Curve = tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]]
"""False positive rates and true positive rates, both rising from 0 to 1."""


ROUNDING = 1e-2  # tolerance for the rows' sums: a softmax in bfloat16 deviates from 1 by up to 0.6 %


def scores(
    labels: np.ndarray | Array, probabilities: np.ndarray | Array, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """All scores for integer labels [N] and probabilities [N, C], as JSON values: numbers, lists, None.

    With TP, FP and FN counted for each class: precision = TP / (TP + FP), recall = TP / (TP + FN), f1 = 2 TP / (2 TP +
    FP + FN), and ``auc`` the area under `roc_curves`. ``*_per_class`` are lists over C; ``*_macro`` their mean over the
    classes with examples; ``*_micro`` uses TP, FP and FN summed over all classes, so all three equal ``accuracy``.
    A class with examples that is never predicted has precision 0. ``missing_classes`` have no examples: their recall
    and auc are None; their precision and f1 are 0 if they are predicted, else None. If all labels are equal, auc is
    None. ``confusion`` is `confusion_matrix`, ``examples_per_class`` its row sums.

    ValueError for labels outside 0 ... C-1 or of another length, and for rows that don't sum to 1.

    >>> result = scores(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), ["cat", "dog"])
    >>> result["confusion"], result["recall_per_class"], result["precision_macro"], result["auc_macro"]
    ([[1, 0], [1, 1]], [1.0, 0.5], 0.75, 1.0)
    """
    from sklearn import metrics  # takes a second, and only some commands need it

    labels, probabilities = check_arguments(labels, probabilities)
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
    quotients: dict[str, Any] = {
        "precision": metrics.precision_score,
        "recall": metrics.recall_score,
        "f1": metrics.f1_score,
    }
    for name, quotient in quotients.items():
        score: Any = partial(quotient, labels, predicted, labels=range(classes), zero_division=0)
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
    """The confusion matrix of labels (rows) and predictions (columns): M[i, j] = |{n: labels_n = i, predicted_n = j}|.

    ValueError unless both are integers [N] in 0 ... ``classes`` - 1, and for ``classes`` < 1.
    """
    from sklearn import metrics  # takes a second, and only some commands need it

    if classes < 1:
        raise ValueError(f"classes={classes}: must be at least 1")
    labels, predicted = _check_classes("labels", labels, classes), _check_classes("predicted", predicted, classes)
    if len(labels) != len(predicted):
        raise ValueError(f"labels: {len(labels)}, predicted: {len(predicted)} of them, give one for each example")
    return metrics.confusion_matrix(labels, predicted, labels=range(classes))


def roc_curves(labels: np.ndarray | Array, probabilities: np.ndarray | Array) -> dict[int, Curve]:
    """One-vs-rest ROC curves, from integer labels [N] and probabilities [N, C]: points (FPR, TPR), float64.

    For every threshold t on the class's probability, TPR(t) = share of its examples with p >= t, FPR(t) = share of all
    other examples with p >= t. Collinear points are dropped. The area under the curve is the probability that a random
    example of the class gets a higher p than a random example of another class, ties counting half. A class with no
    examples, or with all of them, has no curve and is omitted.

    Source: Fawcett 2006, "An introduction to ROC analysis", Pattern Recognition Letters 27. ValueError as `scores`.
    """
    from sklearn import metrics  # takes a second, and only some commands need it

    labels, probabilities = check_arguments(labels, probabilities)
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    with_curve = np.flatnonzero((counts > 0) & (counts < len(labels))).tolist()
    return {c: metrics.roc_curve(labels == c, probabilities[:, c])[:2] for c in with_curve}


def worst_mistakes(
    labels: np.ndarray | Array, probabilities: np.ndarray | Array, count: int
) -> Int[np.ndarray, " mistakes"]:
    """Indices of at most ``count`` wrongly classified examples, the highest probability of a wrong class first.

    Labels are integers [N], probabilities [N, C]. Ties keep their order. ValueError as `scores`, and for
    ``count`` < 1.
    """
    labels, probabilities = check_arguments(labels, probabilities)
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    mistakes = np.flatnonzero(probabilities.argmax(1) != labels)
    return mistakes[np.argsort(-probabilities[mistakes].max(1), kind="stable")[:count]]


def check_arguments(labels: np.ndarray | Array, probabilities: np.ndarray | Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels as integers [N] and the probabilities as float64 [N, C]; ValueError if invalid."""
    probabilities = as_floats("probabilities", probabilities)
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
    """Return the values as int64; ValueError unless they are integers [N >= 1] in 0 ... classes - 1."""
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


def as_floats(name: str, given: np.ndarray | Array) -> np.ndarray:
    """The array as float64; ValueError unless it contains only finite floats."""
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


def as_texts(names: Sequence[str] | None, classes: int) -> list[str]:
    """The class names for plots, with dollar signs escaped, since Matplotlib would read them as formulas."""
    called = [str(c) for c in range(classes)] if names is None else _check_names(names, classes)
    return [name.replace("$", r"\$") for name in called]
