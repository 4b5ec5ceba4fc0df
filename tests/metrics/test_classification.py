"""Classifier scores against hand counts, scikit-learn and rank statistics; invariants; missing classes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from jaxai.metrics import classification
from tests.helpers import BAD_CLASSIFICATIONS, LABELS, PROBABILITIES, classified


@st.composite
def cases(draw) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and probabilities [n, C], coarse so that scores tie across examples, but never within one."""
    classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.integers(0, 4, (n, classes)) + rng.permuted(np.tile(np.arange(1, classes + 1) / 8, (n, 1)), axis=1)
    return rng.integers(0, classes, n), weights / weights.sum(1, keepdims=True)


def rank_auc(positive: np.ndarray, p: np.ndarray) -> float:
    """The share of pairs (positive, negative) in the right order, ties counting half."""
    differences = p[positive][:, None] - p[~positive][None]
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def test_hand_counted():
    result = classification.scores(LABELS, PROBABILITIES, ["a", "b", "c"])
    assert result["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert result["examples"] == 6
    assert result["examples_per_class"] == [3, 2, 1]
    assert result["classes"] == ["a", "b", "c"]
    assert result["missing_classes"] == []
    expected = {
        "accuracy": 4 / 6,
        "precision_per_class": [2 / 3, 1 / 2, 1.0],
        "recall_per_class": [2 / 3, 1 / 2, 1.0],
        "f1_per_class": [2 / 3, 1 / 2, 1.0],
        "precision_macro": 13 / 18,
        "recall_macro": 13 / 18,
        "f1_macro": 13 / 18,
        # Of a 0.7, 0.5, 0.1 against 0.2, 0.6, 0.1: 5 pairs in order, 1 tie; of b 0.6, 0.3 against 0.2, 0.4, 0.8, 0.2
        "auc_per_class": [5.5 / 9, 5 / 8, 1.0],
        "auc_macro": (5.5 / 9 + 5 / 8 + 1) / 3,
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize(("n", "classes"), [(40, 2), (60, 3), (200, 10)])
def test_scores_are_sklearns(n, classes):
    labels, p = classified(n, n, classes)
    result = classification.scores(labels, p)
    predicted = p.argmax(1)
    report = metrics.classification_report(labels, predicted, output_dict=True, zero_division=0)
    close = {"rel": 1e-12}  # float64, the same sums in another order
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted), **close)
    for name, theirs in {"precision": "precision", "recall": "recall", "f1": "f1-score"}.items():
        assert result[f"{name}_macro"] == pytest.approx(report["macro avg"][theirs], **close)
        per_class = [report[str(c)][theirs] for c in range(classes)]
        assert result[f"{name}_per_class"] == pytest.approx(per_class, **close)
    for average, name in (("macro", "auc_macro"), (None, "auc_per_class")):
        theirs = metrics.roc_auc_score(np.eye(classes)[labels], p, average=average)
        assert result[name] == pytest.approx(theirs, **close)
    assert result["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()


@given(cases())
def test_invariants(case):
    labels, p = case
    n, classes = p.shape
    result = classification.scores(labels, p)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for name in ("precision", "recall", "f1"):
        assert result[f"{name}_micro"] == pytest.approx(result["accuracy"], rel=1e-12)
    confusion = np.array(result["confusion"])
    assert confusion.shape == (classes, classes)
    assert confusion.sum() == n
    assert confusion.sum(1).tolist() == result["examples_per_class"] == np.bincount(labels, minlength=classes).tolist()
    assert confusion.sum(0).tolist() == np.bincount(p.argmax(1), minlength=classes).tolist()
    assert np.trace(confusion) == pytest.approx(result["accuracy"] * n)
    assert result["missing_classes"] == [c for c in range(classes) if c not in labels]
    for c, recall in enumerate(result["recall_per_class"]):
        assert (recall is None) == (c in result["missing_classes"])
    for name in ("precision", "recall", "f1"):
        present = [result[f"{name}_per_class"][c] for c in set(labels.tolist())]
        assert result[f"{name}_macro"] == pytest.approx(np.mean(present), rel=1e-12)


@given(cases())
def test_area_is_the_share_of_pairs_in_order(case):
    labels, p = case
    for c, area in enumerate(classification.scores(labels, p)["auc_per_class"]):
        positive = labels == c
        if positive.any() and not positive.all():
            assert area == pytest.approx(rank_auc(positive, p[:, c]), abs=1e-12)
        else:
            assert area is None


@settings(max_examples=15)
@given(cases(), st.randoms(use_true_random=False))
def test_permuted_classes_permute_the_results(case, random):
    labels, p = case
    order = list(range(p.shape[1]))
    random.shuffle(order)  # the new class i is the old class order[i]
    before = classification.scores(labels, p)
    after = classification.scores(np.argsort(order)[labels], p[:, order])
    for name in ("precision", "recall", "f1", "auc", "examples"):
        assert after[f"{name}_per_class"] == [before[f"{name}_per_class"][c] for c in order]
    assert np.array_equal(after["confusion"], np.array(before["confusion"])[order][:, order])
    names = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "auc_macro")
    old, new = (np.array([result[name] for name in names], float) for result in (before, after))  # None becomes NaN
    np.testing.assert_allclose(new, old, rtol=1e-12)  # the mean in another order


@settings(max_examples=15)
@given(cases(), st.randoms(use_true_random=False))
def test_order_of_examples_does_not_count(case, random):
    labels, p = case
    order = list(range(len(labels)))
    random.shuffle(order)
    assert classification.scores(labels[order], p[order]) == classification.scores(labels, p)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 64)), min_size=2, max_size=30))
def test_area_survives_a_monotone_transform(examples):
    labels = np.array([int(label) for label, _ in examples])
    p = np.array([k / 64 for _, k in examples])  # so coarse that the cubes of different ones differ
    q = p**3 / (p**3 + (1 - p) ** 3)
    before, after = (classification.scores(labels, np.stack([1 - x, x], 1)) for x in (p, q))
    assert after["auc_per_class"][1] == before["auc_per_class"][1]


@pytest.mark.parametrize("classes", [2, 5])
def test_areas_of_perfect_reversed_and_constant(classes):
    labels = np.arange(12) % classes
    perfect = np.eye(classes)[labels]
    result = classification.scores(labels, perfect)
    assert result["auc_per_class"] == [1.0] * classes
    assert [result[name] for name in ("accuracy", "f1_macro", "auc_macro")] == [1.0, 1.0, 1.0]
    wrong = (1 - perfect) / (classes - 1)
    assert classification.scores(labels, wrong)["auc_per_class"] == [0.0] * classes
    constant = np.full((12, classes), 1 / classes)
    assert classification.scores(labels, constant)["auc_per_class"] == [0.5] * classes


def test_both_classes_of_two_have_the_same_area():
    result = classification.scores(*classified(3, 50, 2))
    assert result["auc_per_class"][0] == pytest.approx(result["auc_per_class"][1], rel=1e-12)
    assert 0.5 < result["auc_macro"] < 1


def test_missing_classes_are_said():
    labels = np.array([0, 0, 1, 1])
    p = np.array([[0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.6, 0.1]])
    result = classification.scores(labels, p, ["cat", "dog", "owl", "bat"])
    assert result["missing_classes"] == ["owl", "bat"]
    assert classification.scores(labels, p)["missing_classes"] == [2, 3]
    assert result["auc_per_class"] == [1.0, pytest.approx(1 - 0.5 / 4), None, None]
    assert result["recall_per_class"] == [1.0, 0.5, None, None]
    assert result["precision_per_class"] == [1.0, 1.0, 0.0, None]  # owl is predicted once, bat never
    assert result["f1_per_class"] == [1.0, pytest.approx(2 / 3), 0.0, None]
    macro = [result[f"{name}_macro"] for name in ("precision", "recall", "f1", "auc")]
    assert macro == pytest.approx([1.0, 0.75, 5 / 6, 1 - 0.25 / 4])
    assert sorted(classification.roc_curves(labels, p)) == [0, 1]


def test_present_class_never_predicted_has_precision_zero():
    result = classification.scores(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]))
    assert result["precision_per_class"] == [0.5, 0.0]
    assert result["precision_macro"] == 0.25


def test_all_labels_of_one_class():
    labels, p = np.ones(3, np.int32), np.array([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    result = classification.scores(labels, p)
    assert (result["auc_macro"], result["auc_per_class"]) == (None, [None, None])
    assert result["recall_macro"] == pytest.approx(2 / 3)
    assert classification.roc_curves(labels, p) == {}


@given(cases())
def test_curves_rise_from_corner_to_corner(case):
    for false_rate, true_rate in classification.roc_curves(*case).values():
        for rate in (false_rate, true_rate):
            assert (rate[0], rate[-1]) == (0, 1)
            assert (np.diff(rate) >= 0).all()


def test_hand_drawn_curve():
    p = np.array([0.9, 0.8, 0.7, 0.6])
    curve = classification.roc_curves(np.array([1, 0, 1, 0]), np.stack([1 - p, p], 1))[1]
    assert np.array_equal(curve, [[0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1]])


def test_arrays_of_jax_and_small_types():
    labels, p = jnp.asarray(LABELS, "int8"), jnp.asarray(PROBABILITIES, "bfloat16")
    result = classification.scores(labels, p)
    assert result["confusion"] == classification.scores(LABELS, PROBABILITIES)["confusion"]
    assert classification.confusion_matrix(labels, p.argmax(1), 3).tolist() == result["confusion"]
    assert classification.scores(LABELS.astype(np.uint64), PROBABILITIES)["confusion"] == result["confusion"]


@pytest.mark.parametrize(("labels", "probabilities", "message"), BAD_CLASSIFICATIONS)
def test_bad_labels_and_probabilities(labels, probabilities, message):
    for call in (
        lambda: classification.scores(labels, probabilities),
        lambda: classification.roc_curves(labels, probabilities),
        lambda: classification.worst_mistakes(labels, probabilities, 3),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_other_bad_arguments():
    given = (LABELS, PROBABILITIES)
    for message, call in (
        ("names: 2 of them, give one for each of the 3", lambda: classification.scores(*given, ["a", "b"])),
        ("predicted: values 0 ... 3", lambda: classification.confusion_matrix(LABELS, np.array([0, 3]), 3)),
        ("classes=0: must be at least 1", lambda: classification.confusion_matrix(LABELS, LABELS, 0)),
        ("predicted: float64", lambda: classification.confusion_matrix(LABELS, PROBABILITIES, 3)),
        ("labels: 6, predicted: 2", lambda: classification.confusion_matrix(LABELS, LABELS[:2], 3)),
        ("count=0", lambda: classification.worst_mistakes(*given, 0)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_worst_mistakes_come_first():
    assert classification.worst_mistakes(LABELS, PROBABILITIES, 5).tolist() == [2, 4]
    assert classification.worst_mistakes(LABELS, PROBABILITIES, 1).tolist() == [2]
    assert classification.worst_mistakes(LABELS, np.eye(3)[LABELS], 5).tolist() == []
    equal = np.full((4, 2), 0.5)
    assert classification.worst_mistakes(np.array([1, 0, 1, 1]), equal, 2).tolist() == [0, 2]
