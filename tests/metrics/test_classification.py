"""Classifier scores against hand counts, scikit-learn and rank statistics; invariants; missing classes; pictures."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics

from jaxai.metrics import classification

LABELS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]
)


@st.composite
def cases(draw) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and probabilities [n, C], coarse so that scores tie across examples, but never within one."""
    classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.integers(0, 4, (n, classes)) + rng.permuted(np.tile(np.arange(1, classes + 1) / 8, (n, 1)), axis=1)
    return rng.integers(0, classes, n), weights / weights.sum(1, keepdims=True)


def complete(seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A mediocre classifier on labels in which every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    logits = rng.standard_normal((n, classes)) + np.eye(classes)[labels]
    odds = np.exp(logits)
    return labels, odds / odds.sum(1, keepdims=True)


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
    labels, p = complete(n, n, classes)
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
    result = classification.scores(*complete(3, 50, 2))
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


BAD_PROBABILITIES = [
    (PROBABILITIES[:, 0], r"probabilities: shape \[6\], give \[N, C >= 2\]"),
    (PROBABILITIES[:, :1], r"of a single p give \[1 - p, p\]"),
    (np.ones((6, 3), np.int64), r"probabilities: int64\[6, 3\], give floating-point"),
    (np.where(PROBABILITIES > 0.75, np.nan, PROBABILITIES), "probabilities: NaN or infinity"),
    (np.where(PROBABILITIES > 0.75, np.inf, PROBABILITIES), "probabilities: NaN or infinity"),
    (np.log(PROBABILITIES), "probabilities: row 0 has the sum .* of logits give jax.nn.softmax"),
    (np.eye(3)[LABELS] * 2 - 1 / 3, "probabilities: row 0 .* minimum -0.3333"),  # the sums are 1
    (PROBABILITIES * 1.02, "probabilities: row 0 has the sum 1.02"),
    (PROBABILITIES[:5], r"labels: 6, probabilities: shape \[5, 3\], give one row for each label"),
    (PROBABILITIES[:, :2] / PROBABILITIES[:, :2].sum(1, keepdims=True), r"labels: values 0 ... 2, give 0 ... 1"),
]
BAD_LABELS = [
    (LABELS - 1, r"labels: values -1 ... 1, give 0 ... 2"),
    (LABELS + 1, r"labels: values 1 ... 3, give 0 ... 2"),
    (LABELS.astype(np.float32), r"labels: float32\[6\], give integers of shape \[N\]"),
    (LABELS > 0, r"labels: bool\[6\], give integers"),
    (np.eye(3, dtype=np.int32)[LABELS], r"labels: int32\[6, 3\], give integers .* one-hot rows take argmax"),
]
EMPTY = (LABELS[:0], PROBABILITIES[:0], "labels: none of them")
BAD = [(LABELS, p, m) for p, m in BAD_PROBABILITIES] + [(y, PROBABILITIES, m) for y, m in BAD_LABELS] + [EMPTY]


@pytest.mark.parametrize(("labels", "probabilities", "message"), BAD)
def test_bad_labels_and_probabilities(labels, probabilities, message, tmp_path):
    images = np.zeros((len(labels), 4, 4, 1), np.uint8)
    for call in (
        lambda: classification.scores(labels, probabilities),
        lambda: classification.roc_curves(labels, probabilities),
        lambda: classification.worst_mistakes(labels, probabilities, 3),
        lambda: classification.plot_roc(tmp_path / "a.png", labels, probabilities),
        lambda: classification.plot_mistakes(tmp_path / "a.png", images, labels, probabilities),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_other_bad_arguments(tmp_path):
    path, images = tmp_path / "a.png", np.zeros((6, 4, 4, 1), np.uint8)
    given = (LABELS, PROBABILITIES)
    for message, call in (
        ("names: 2 of them, give one for each of the 3", lambda: classification.scores(*given, ["a", "b"])),
        ("predicted: values 0 ... 3", lambda: classification.confusion_matrix(LABELS, np.array([0, 3]), 3)),
        ("classes=0: must be at least 1", lambda: classification.confusion_matrix(LABELS, LABELS, 0)),
        ("predicted: float64", lambda: classification.confusion_matrix(LABELS, PROBABILITIES, 3)),
        ("labels: 6, predicted: 2", lambda: classification.confusion_matrix(LABELS, LABELS[:2], 3)),
        ("count=0", lambda: classification.worst_mistakes(*given, 0)),
        ("names: 1 of them", lambda: classification.plot_roc(path, *given, ["a"])),
        ("names: 1 of them", lambda: classification.plot_mistakes(path, images, *given, ["a"])),
        ("count=0", lambda: classification.plot_mistakes(path, images, *given, count=0)),
        (r"images: float64\[6, 4", lambda: classification.plot_mistakes(path, images / 255, *given)),
        (r"images: uint8\[6, 4, 4\]", lambda: classification.plot_mistakes(path, images[..., 0], *given)),
        ("images: 5, labels: 6", lambda: classification.plot_mistakes(path, images[:5], *given)),
        (r"confusion: int64\[2, 3\]", lambda: classification.plot_confusion(path, np.zeros((2, 3), np.int64))),
        (r"confusion: int64\[0, 0\]", lambda: classification.plot_confusion(path, np.zeros((0, 0), np.int64))),
        ("confusion: int64 with minimum -1", lambda: classification.plot_confusion(path, [[1, -1], [0, 2]])),
        ("give integer counts, not shares", lambda: classification.plot_confusion(path, np.eye(2))),
        ("names: 1 of them", lambda: classification.plot_confusion(path, [[1, 0], [0, 2]], ["a"])),
        ("kernel: shape", lambda: classification.plot_filters(path, np.zeros((3, 3, 2, 4)))),
        ("kernel: shape", lambda: classification.plot_filters(path, np.zeros((3, 3, 1, 0)))),
        ("kernel: shape", lambda: classification.plot_filters(path, np.zeros((3, 3, 1)))),
        ("kernel: int64", lambda: classification.plot_filters(path, np.zeros((3, 3, 1, 4), np.int64))),
        ("kernel: NaN", lambda: classification.plot_filters(path, np.full((3, 3, 1, 4), np.nan))),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not any(tmp_path.iterdir())


def test_worst_mistakes_come_first():
    assert classification.worst_mistakes(LABELS, PROBABILITIES, 5).tolist() == [2, 4]
    assert classification.worst_mistakes(LABELS, PROBABILITIES, 1).tolist() == [2]
    assert classification.worst_mistakes(LABELS, np.eye(3)[LABELS], 5).tolist() == []
    equal = np.full((4, 2), 0.5)
    assert classification.worst_mistakes(np.array([1, 0, 1, 1]), equal, 2).tolist() == [0, 2]


def picture(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


NAMES = ["aeroplane", "$_{$", "_x"]  # none may be read as a formula or hidden from the legend


@pytest.mark.parametrize("names", [None, NAMES])
@pytest.mark.parametrize("labels", [LABELS, np.zeros(6, np.int32)])
def test_roc_picture(tmp_path, labels, names):
    classification.plot_roc(tmp_path / "new" / "roc.png", labels, PROBABILITIES, names)
    height, width, _ = picture(tmp_path / "new" / "roc.png").shape
    assert 300 < height < width < 2000
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["roc.png"]


def test_roc_picture_of_many_classes(tmp_path):
    classification.plot_roc(tmp_path / "roc.png", *complete(0, 60, 24))
    assert picture(tmp_path / "roc.png").shape[1] < 2000


def test_confusion_picture(tmp_path):
    classification.plot_confusion(tmp_path / "a.png", [[5, 0, 1], [0, 0, 0], [12345, 2, 9]], NAMES)
    pixels = picture(tmp_path / "a.png")
    assert 200 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) < 1000
    assert (pixels == np.array([211, 211, 211])).all(-1).mean() > 0.01  # the empty row is light grey
    classification.plot_confusion(tmp_path / "b.png", np.array([[5, 0, 1], [1, 2, 3], [0, 2, 9]]))
    assert (picture(tmp_path / "b.png") == np.array([211, 211, 211])).all(-1).mean() < 0.001


def test_confusion_colours_show_shares_not_counts(tmp_path):
    counts = np.array([[3, 1], [1, 1]])
    classification.plot_confusion(tmp_path / "a.png", counts)
    blue = np.array([8, 48, 107])  # a share of 1
    assert not (picture(tmp_path / "a.png")[:, :200] == blue).all(-1).any()
    classification.plot_confusion(tmp_path / "a.png", np.diag([1000, 1]))
    assert (picture(tmp_path / "a.png")[:, :200] == blue).all(-1).sum() > 2000  # both cells, the one example too


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_of_mistakes(tmp_path, channels):
    images = np.zeros((6, 8, 8, channels), np.uint8)
    images[[2, 4]] = [200, 100, 50][:channels]
    classification.plot_mistakes(tmp_path / "a.png", images, LABELS, PROBABILITIES, NAMES)
    pixels = picture(tmp_path / "a.png")
    assert 100 < min(pixels.shape[:2]) <= max(pixels.shape[:2]) < 1000
    colour = [200, 100, 50] if channels == 3 else [200] * 3
    assert (pixels == np.array(colour)).all(-1).mean() > 0.2  # the two wrong ones are shown
    one = tmp_path / "one.png"
    classification.plot_mistakes(one, images, LABELS, PROBABILITIES, count=1)
    assert picture(one).shape != pixels.shape


def test_picture_without_mistakes(tmp_path):
    images = np.zeros((6, 8, 8, 1), np.uint8)
    classification.plot_mistakes(tmp_path / "a.png", images, LABELS, np.eye(3)[LABELS])
    assert picture(tmp_path / "a.png").size


def test_filters_fill_their_own_range(tmp_path):
    kernel = np.zeros((2, 4, 1, 3))
    kernel[..., 0] = -5 + np.arange(8).reshape(2, 4, 1)
    kernel[0, 0, 0, 1] = 1e-3  # the third is constant
    classification.plot_filters(tmp_path / "a.png", jnp.asarray(kernel, "bfloat16"))
    pixels = picture(tmp_path / "a.png")
    assert pixels.shape == (2 * (32 + 6) + 6, 2 * (64 + 6) + 6, 3)
    centres = pixels[14:44:16, 14::16][:, :4, 0]
    assert centres.ravel().tolist() == pytest.approx(np.arange(8) * 255 / 7, abs=1)
    assert (pixels[6:22, 76:92] == 255).all()  # the one weight that is not zero
    assert (pixels[6:38, 92:140] == 0).all()
    assert set(np.unique(pixels[44:76, 6:70])) <= {127, 128}
    assert (pixels[38:, 70:] == 255).all()  # the fourth place is empty


def test_filters_of_three_channels_share_a_range(tmp_path):
    kernel = np.zeros((1, 2, 3, 1), np.float32)
    kernel[0, :, :, 0] = [[0, 1, 2], [2, 2, 4]]
    classification.plot_filters(tmp_path / "a.png", kernel)
    pixels = picture(tmp_path / "a.png").astype(int)
    assert pixels[10, 10].tolist() == pytest.approx([0, 64, 128], abs=1)
    assert pixels[10, 60].tolist() == pytest.approx([128, 128, 255], abs=1)


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    classification.plot_filters(target, np.zeros((2, 2, 1, 1)))
    before = target.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        classification.plot_confusion(target, [[1, 0], [0, 1]])
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
