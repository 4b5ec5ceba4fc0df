"""Generation metrics against independent packages and formulas, closed forms, invariances, and bad input."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc

from jaxai.metrics import generation


def features(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def pair(seed: int, n: int = 300, m: int = 250, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Two sets that overlap in part, with correlated columns."""
    mix = np.random.default_rng(seed + 1000).standard_normal((d, d)) / np.sqrt(d)
    return features(seed, n, d), features(seed + 1, m, d) @ mix + 0.3


def fidelity_fid(x: np.ndarray, y: np.ndarray) -> float:
    """torch-fidelity's formula: the trace of SciPy's root of the product of the covariances."""
    covx, covy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(covx @ covy).real
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.trace(covx) + np.trace(covy) - 2 * np.trace(root))


def fidelity_kid(x: np.ndarray, y: np.ndarray) -> float:
    """torch-fidelity's polynomial_mmd for one subset: degree 3, gamma 1/d, coefficient 1, unbiased."""
    m, d = x.shape
    k_xx, k_yy, k_xy = ((a @ b.T / d + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    kt_xx, kt_yy = (k.sum(axis=1) - np.diagonal(k) for k in (k_xx, k_yy))
    return float((kt_xx.sum() + kt_yy.sum()) / (m * (m - 1)) - 2 * k_xy.sum() / (m * m))


@pytest.mark.parametrize("d", [2, 8, 64])
def test_frechet_distance_is_scipys(d):
    x, y = pair(0, n=400, m=300, d=d)
    # sqrtm of the unsymmetric product loses about half of float64's digits
    assert generation.frechet_distance(x, y) == pytest.approx(fidelity_fid(x, y), rel=1e-7)


def test_frechet_distance_of_gaussians_in_closed_form():
    # Whitened samples with moments imposed exactly, commuting covariances: |mu|^2 + sum (sqrt(a) - sqrt(b))^2.
    x = features(0, 500, 6)
    white = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    a, b, mean = np.arange(1.0, 7), np.arange(6.0, 0, -1), np.full(6, 0.5)
    expected = mean @ mean + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    got = generation.frechet_distance(white * np.sqrt(a), white * np.sqrt(b) + mean)
    assert got == pytest.approx(expected, rel=1e-10)  # float64, well conditioned


def test_frechet_distance_survives_singular_covariances():
    x, y = pair(1, d=3)
    wide = [np.concatenate([part, part, np.zeros_like(part)], 1) for part in (x, y)]
    # each duplicated column doubles the distance; the root of a rounding error of 1e-16 is 1e-8
    assert generation.frechet_distance(*wide) == pytest.approx(2 * generation.frechet_distance(x, y), rel=1e-6)
    assert generation.frechet_distance(features(0, 5, 20), features(0, 5, 20)) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_torch_fidelitys():
    x, y = pair(2, n=200, m=200)
    got = generation.kernel_distance(x, y, subsets=3)  # every subset is the whole set
    assert got == pytest.approx(fidelity_kid(x, y), rel=1e-10)  # float64 sums in another order


def test_kernel_distance_is_unbiased_and_reproducible():
    x = features(0, 3000, 16)
    values = [generation.kernel_distance(x[:1500], x[1500:], subsets=20, subset_size=200, seed=s) for s in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    biased = 2 * np.mean((np.square(x).mean(1) + 1) ** 3) / 200  # what the diagonal would add
    assert abs(values[0]) < biased / 10


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [64, 1000])
def test_manifold_scores_are_prdcs(k, block, monkeypatch, capsys):
    monkeypatch.setattr(generation, "BLOCK", block)
    x, y = pair(3)
    expected = compute_prdc(x, y, k)
    assert generation.precision_recall_density_coverage(x, y, k) == pytest.approx(expected, rel=1e-12)


def test_manifold_scores_of_equal_gaussians():
    x, y = features(4, 4000, 4), features(5, 4000, 4)
    scores = generation.precision_recall_density_coverage(x, y)
    assert scores["coverage"] == pytest.approx(1 - 2**-5, abs=0.015)  # standard error 0.003 and dependence of the balls
    assert scores["density"] == pytest.approx(1, abs=0.03)


@pytest.mark.slow
def test_manifold_scores_of_high_dimensional_gaussians():
    x, y = features(0, 10_000, 1000), features(1, 10_000, 1000)
    scores = generation.precision_recall_density_coverage(x, y)
    # Published for one draw of unknown seed. Few samples are in very many balls at d = 1000, so draws differ: over four
    # of them precision was 0.456-0.497, recall 0.474-0.486, density 0.91-1.07, coverage 0.956-0.974.
    published = {"precision": 0.4772, "recall": 0.4705, "density": 1.0555, "coverage": 0.9735}
    tolerance = {"precision": 0.04, "recall": 0.04, "density": 0.2, "coverage": 0.03}
    for name, value in published.items():
        assert scores[name] == pytest.approx(value, abs=tolerance[name]), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-5, 5), scale=st.floats(0.2, 5))
def test_invariances(seed, shift, scale):
    x, y = pair(seed, n=60, m=50, d=4)
    rotation = scipy.linalg.qr(features(seed + 2, 4, 4))[0]
    moved = [(part @ rotation + shift) * scale for part in (x, y)]
    distance = generation.frechet_distance(x, y)
    assert generation.frechet_distance(*moved) == pytest.approx(scale**2 * distance, rel=1e-8)
    assert generation.frechet_distance(y, x) == pytest.approx(distance, rel=1e-8)
    scores = generation.precision_recall_density_coverage(x, y)
    assert generation.precision_recall_density_coverage(*moved) == pytest.approx(scores, abs=1e-12)
    shuffled = generation.precision_recall_density_coverage(x[::-1].copy(), np.roll(y, 7, 0))
    assert shuffled == pytest.approx(scores, abs=1e-12)
    swapped = generation.precision_recall_density_coverage(y, x)
    assert (swapped["precision"], swapped["recall"]) == (scores["recall"], scores["precision"])


def test_histogram_and_its_kl():
    counts = generation.histogram(np.array([0, 2, 2, 9]))
    assert counts.tolist() == [1, 0, 2, 0, 0, 0, 0, 0, 0, 1]
    assert generation.histogram_kl(counts, 3 * counts) == 0
    assert generation.histogram_kl(counts, np.ones(10)) == pytest.approx(math.log(10) - 1.5 * math.log(2))
    p, q = np.array([1, 2, 3]), np.array([3, 2, 1])
    assert generation.histogram_kl(p, q) == pytest.approx(scipy.stats.entropy(p, q))
    assert generation.histogram_kl(np.array([1, 1]), np.array([1, 0])) == math.inf


def images(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28, 1), np.uint8)


def test_near_copies_finds_planted_copies(monkeypatch):
    monkeypatch.setattr(generation, "BLOCK", 30)
    train, held_out, fresh = images(0, 100), images(1, 50), images(2, 100)
    noisy = np.clip(train[:25].astype(int) + np.random.default_rng(3).integers(-20, 21, train[:25].shape), 0, 255)
    planted = np.concatenate([noisy.astype(np.uint8), fresh[25:]])
    assert generation.near_copies(fresh, train, held_out) == 0
    assert generation.near_copies(planted, train, held_out) == 0.25
    assert generation.near_copies(train, train, held_out) == 1


def test_evaluate_digits_of_noise_and_of_copies():
    train, test = images(0, 150), images(1, 50)
    count = generation.evaluation_size(train, test)
    assert count == 100
    copies = generation.evaluate_digits(np.concatenate([test, train[:50]]), train, test)
    assert copies["mnist_fd"] == pytest.approx(0, abs=1e-3 * copies["mnist_fd_floor"])
    assert copies["near_copies"] == 0.5
    assert copies["near_copies_floor"] == 0
    assert copies["histogram_kl"] == 0
    assert copies["samples"] == sum(copies["histogram"]) == count
    constant = generation.evaluate_digits(np.zeros((count, 28, 28, 1), np.uint8), train, test)
    assert constant["digits"] == 1
    assert constant["mnist_fd"] > copies["mnist_fd_floor"]
    assert constant["recall"] == 0


def test_evaluation_size():
    assert generation.evaluation_size(images(0, 45), images(0, 6)) == 25
    assert generation.evaluation_size(np.empty(60_000), np.empty(10_000)) == 10_000


GOOD = features(0, 20, 3)
NAN = np.where(np.arange(3) == 1, np.nan, GOOD)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (generation.frechet_distance, (GOOD[0], GOOD), r"real: float64\[3\], give floating-point features"),
        (generation.frechet_distance, (GOOD, GOOD.astype(int)), r"generated: int64\[20, 3\], give floating-point"),
        (generation.frechet_distance, (GOOD, GOOD[:1]), "generated: 1 samples, give at least 2"),
        (generation.frechet_distance, (GOOD, GOOD[:, :2]), "real 3, generated 2: the feature sizes differ"),
        (generation.frechet_distance, (GOOD, NAN), "generated: NaN or infinity"),
        (generation.kernel_distance, (NAN, GOOD), "real: NaN or infinity"),
        (generation.precision_recall_density_coverage, (GOOD, GOOD[:5]), "generated: 5 samples, give at least 6"),
        (generation.precision_recall_density_coverage, (GOOD, GOOD, 0), "k=0: must be at least 1"),
        (generation.histogram, (np.array([10]),), r"labels: values 10 ... 10, give 0 ... 9"),
        (generation.histogram, (np.array([0.5]),), r"labels: float64\[1\], give integers"),
        (generation.histogram_kl, (np.ones(3), np.ones(2)), r"reference_counts: shape \[2\]"),
        (generation.histogram_kl, (np.zeros(3), np.ones(3)), "counts: give counts that are finite"),
        (generation.near_copies, (images(0, 2) / 255, images(0, 2), images(0, 2)), "generated: float64"),
        (generation.near_copies, (images(0, 2), images(0, 2), images(0, 2)[:, 1:]), "held_out: uint8"),
        (generation.near_copies, (images(0, 0), images(0, 2), images(0, 2)), "generated: no images"),
        (generation.evaluate_digits, (images(0, 9), images(0, 10), images(0, 10)), "generated: 9 images, give .* = 10"),
        (generation.evaluate_digits, (images(0, 9), images(0, 9), images(0, 9)), "train, test: 9 .* at least 20"),
        (generation.evaluate_digits, (images(0, 9), images(0, 9)[..., 0], images(0, 9)), "train: uint8"),
    ],
)
def test_bad_input_names_the_argument(function, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


def test_bad_subsets():
    with pytest.raises(ValueError, match="subset_size=1"):
        generation.kernel_distance(GOOD, GOOD, subset_size=1)
