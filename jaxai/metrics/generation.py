"""Metrics of generated samples: distances to real ones, manifold scores, histograms and near-copies.

Everything runs on the host in NumPy, in float64 unless noted otherwise, and takes feature arrays [n, d] of any network;
`evaluate_digits` combines the metrics for digit images and the fixed classifier of ``jaxai.metrics.digits``.
"""

from collections.abc import Iterator

import numpy as np

from jaxai.metrics import digits
from jaxai.typing import Array

BLOCK = 250  # rows of a distance matrix held at once: 20 MB for 10,000 columns of float64


def frechet_distance(real: np.ndarray | Array, generated: np.ndarray | Array) -> float:
    """Fréchet distance between Gaussians with the moments of real [n, d] and generated [m, d] features.

    |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2), with unbiased covariances S, in float64. The trace of
    the root is the sum of the square roots of a symmetric matrix's eigenvalues, clipped at 0. The usual matrix square
    root of S_1 S_2 becomes complex when a covariance is singular.

    Source: Heusel et al. 2017, arXiv 1706.08500. ValueError for arrays that are not [n >= 2, d] or not finite.
    """
    real, generated = _features(2, real=real, generated=generated)
    difference = real.mean(0) - generated.mean(0)
    cov_real, cov_generated = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, generated))
    values, vectors = np.linalg.eigh(cov_real)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_generated @ root), 0)).sum()
    distance = difference @ difference + np.trace(cov_real) + np.trace(cov_generated) - 2 * cross
    return max(float(distance), 0.0)


def kernel_distance(
    real: np.ndarray | Array,
    generated: np.ndarray | Array,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> float:
    """Kernel distance (KID): unbiased MMD^2 of features [n, d] and [m, d] with the kernel (x.y / d + 1)^3.

    The mean over ``subsets`` random subsets, each drawn without replacement, of ``subset_size`` samples or the smaller
    array's length. The expected value for equal distributions is 0, so a single value may be negative.

    Source: Binkowski et al. 2018, arXiv 1801.01401. ValueError for arrays that are not [n >= 2, d] or not finite, and
    for ``subsets`` < 1 or ``subset_size`` < 2.
    """
    real, generated = _features(2, real=real, generated=generated)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"subsets={subsets}, subset_size={subset_size}: at least 1 subset of 2 samples is needed")
    size = min(subset_size, len(real), len(generated))
    rng = np.random.default_rng(seed)
    in_real, in_generated = np.zeros((subsets, len(real))), np.zeros((subsets, len(generated)))
    for subset in range(subsets):
        in_real[subset, rng.choice(len(real), size, False)] = 1
        in_generated[subset, rng.choice(len(generated), size, False)] = 1
    pairs = ((real, in_real), (generated, in_generated))
    own = sum(_kernel_sums(x, x, chosen, chosen) - chosen @ (np.square(x).mean(1) + 1) ** 3 for x, chosen in pairs)
    across = _kernel_sums(real, generated, in_real, in_generated)
    return float(np.mean(own / (size * (size - 1)) - 2 * across / size**2))


def _kernel_sums(x: np.ndarray, y: np.ndarray, in_x: np.ndarray, in_y: np.ndarray) -> np.ndarray:
    """For each subset, a row of ``in_x`` and ``in_y``, the sum of (x.y / d + 1)^3 over its pairs.

    The kernel is computed once per pair for all subsets, in blocks that fit the processor's cache (4 times faster).
    """
    totals, x = np.zeros(len(in_x)), x / x.shape[1]
    for start in range(0, len(x), 100):
        rows = slice(start, start + 100)
        base = x[rows] @ y.T
        base += 1
        base *= base * base
        totals += ((base @ in_y.T).T * in_x[:, rows]).sum(1)
    return totals


def precision_recall_density_coverage(
    real: np.ndarray | Array, generated: np.ndarray | Array, k: int = 5
) -> dict[str, float]:
    """Four scores of generated [m, d] against real [n, d] features, from balls around each sample.

    A ball's radius is the distance from its centre to the k-th nearest other sample of the same set; inside is strictly
    closer. precision: share of generated samples in the ball of at least one real sample; recall: the same with the
    roles exchanged; density: mean number of real balls that contain a generated sample, over k; coverage: share of real
    balls that contain a generated sample. For equal distributions, coverage is 1 - 2^-k and density 1. Distances are
    computed in blocks: memory grows with n + m, not n * m.

    Sources: Kynkäänniemi et al. 2019, arXiv 1904.06991; Naeem et al. 2020, arXiv 2002.09797. ValueError for k < 1, and
    for arrays that are not [n > k, d] or not finite.
    """
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    real, generated = _features(k + 1, real=real, generated=generated)
    real_radii, generated_radii = _squared_radii(real, k), _squared_radii(generated, k)
    precise, recalled, covered, inside = np.zeros(len(generated), bool), 0, 0, 0
    for rows, distances in _squared_distances(real, generated):
        in_real_ball = distances < real_radii[rows, None]
        precise |= in_real_ball.any(0)
        inside += np.count_nonzero(in_real_ball)
        covered += np.count_nonzero(in_real_ball.any(1))
        recalled += np.count_nonzero((distances < generated_radii).any(1))
    return {
        "precision": float(precise.mean()),
        "recall": float(recalled / len(real)),
        "density": float(inside / (k * len(generated))),
        "coverage": float(covered / len(real)),
    }


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of the matrix |x_i - y_j|^2 in the inputs' dtype; the caller may write to them."""
    squares = np.square(y).sum(1)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        distances = x[rows] @ (-2 * y).T
        distances += np.square(x[rows]).sum(1)[:, None]
        distances += squares
        yield rows, np.maximum(distances, 0, out=distances)


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest neighbour, excluding itself."""
    radii = np.empty(len(x))
    for rows, distances in _squared_distances(x, x):
        own = np.arange(len(distances))
        distances[own, own + rows.start] = np.inf
        distances.partition(k - 1, axis=1)
        radii[rows] = distances[:, k - 1]
    return radii


def histogram(labels: np.ndarray | Array, num_classes: int = 10) -> np.ndarray:
    """Count each class in integer labels [n]: int64 [num_classes]. ValueError for labels that are out of range."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: {labels.dtype}{list(labels.shape)}, give integers of shape [n]")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels: values {labels.min()} ... {labels.max()}, give 0 ... {num_classes - 1}")
    return np.bincount(labels, minlength=num_classes)


def histogram_kl(counts: np.ndarray | Array, reference_counts: np.ndarray | Array) -> float:
    """KL(generated || reference) of two histograms [C], in nats: sum_c p_c ln(p_c / q_c), p and q being the shares.

    A class with p_c = 0 contributes 0; a class with q_c = 0 < p_c makes the result infinite. ValueError for other
    shapes, negative or non-finite counts, and empty histograms.
    """
    shares = {}
    for name, given in {"counts": counts, "reference_counts": reference_counts}.items():
        values = np.asarray(given, np.float64)
        if values.ndim != 1 or values.shape != np.shape(counts):
            raise ValueError(f"{name}: shape {list(values.shape)}, give both histograms the shape [classes]")
        if not (np.isfinite(values).all() and values.min(initial=0) >= 0 and values.sum() > 0):
            raise ValueError(f"{name}: give counts that are finite, not negative and not all zero")
        shares[name] = values / values.sum()
    p, q = shares["counts"], shares["reference_counts"]
    seen = p > 0
    with np.errstate(divide="ignore"):
        return max(float(np.sum(p[seen] * (np.log(p[seen]) - np.log(q[seen])))), 0.0)


def near_copies(generated: np.ndarray | Array, training: np.ndarray | Array, held_out: np.ndarray | Array) -> float:
    """Share of generated images that nearly copy a training image; all uint8, of the same shape after the first axis.

    An image is a near-copy when its nearest training image (pixel L2) is closer than half the median distance from
    held-out real images to their nearest training image. A generator that reproduces its training set scores 1. Real
    images do not score 0 but, for MNIST's test digits, 0.10 (its ones are very similar): compare with that floor.
    Distances are float32; their squares are accurate to a few squared grey levels out of millions.

    Source: the nearest-neighbour test of Meehan et al. 2020, arXiv 2004.05675, reduced to a single threshold.
    ValueError for other dtypes, unequal image shapes and empty arrays.
    """
    flat = {}
    for name, images in {"generated": generated, "training": training, "held_out": held_out}.items():
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim < 2 or images.shape[1:] != np.shape(training)[1:]:
            raise ValueError(f"{name}: {images.dtype}{list(images.shape)}, give uint8 images, all three of one size")
        if not len(images):
            raise ValueError(f"{name}: no images, give at least one")
        flat[name] = images.reshape(len(images), -1).astype(np.float32)
    nearest = {name: _nearest(flat[name], flat["training"]) for name in ("generated", "held_out")}
    return float(np.mean(nearest["generated"] < np.median(nearest["held_out"]) / 2))


def _nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(np.concatenate([distances.min(1) for _, distances in _squared_distances(x, y)]))


def evaluation_size(train: np.ndarray | Array, test: np.ndarray | Array) -> int:
    """The number of images that `evaluate_digits` requires: half of all real ones, at most 10,000."""
    return min(10_000, (len(train) + len(test)) // 2)


def evaluate_digits(
    generated: np.ndarray | Array, train: np.ndarray | Array, test: np.ndarray | Array
) -> dict[str, float | int | list[int]]:
    """All scores of a digit generator from uint8 images [n, 28, 28, 1], n = ``evaluation_size(train, test)``.

    The first n of the real images, test before train, are the reference. The next n are scored in the same way: these
    ``*_floor`` values are what a perfect generator would reach. Features and labels are the fixed classifier's.
    ``digits`` counts the classes with at least 1 % of the samples; ``near_copies`` compares with all of train.

    ValueError for other shapes or dtypes, another number of generated images, or fewer than 20 real images.
    """
    generated, train, test = (
        digits.check_images(name, images)
        for name, images in {"generated": generated, "train": train, "test": test}.items()
    )
    count = evaluation_size(train, test)
    if count < 10:
        raise ValueError(f"train, test: {len(train)} + {len(test)} images, give at least 20 together")
    if len(generated) != count:
        raise ValueError(f"generated: {len(generated)} images, give evaluation_size(train, test) = {count}")
    real = np.concatenate([test, train[: 2 * count]])
    features, labels = digits.features_and_labels(generated)
    reference, reference_labels = digits.features_and_labels(real[:count])
    floor, _ = digits.features_and_labels(real[count : 2 * count])
    counts = histogram(labels)
    held_out = test[:1000]  # enough for a median
    return {
        "samples": count,
        "mnist_fd": frechet_distance(reference, features),
        "mnist_fd_floor": frechet_distance(reference, floor),
        "kid": kernel_distance(reference, features),
        "kid_floor": kernel_distance(reference, floor),
        **precision_recall_density_coverage(reference, features),
        "coverage_floor": precision_recall_density_coverage(reference, floor)["coverage"],
        "histogram": counts.tolist(),
        "histogram_kl": histogram_kl(counts, histogram(reference_labels)),
        "digits": int(np.count_nonzero(counts >= count / 100)),
        "near_copies": near_copies(generated, train, held_out),
        "near_copies_floor": near_copies(held_out, train, held_out),
    }


def mnist_fd(real: np.ndarray | Array, generated: np.ndarray | Array) -> float:
    """`frechet_distance` of the fixed classifier's features of uint8 images [n, 28, 28, 1] and [m, 28, 28, 1]."""
    return frechet_distance(*(digits.features_and_labels(images)[0] for images in (real, generated)))


def recognised(images: np.ndarray | Array, labels: np.ndarray) -> float:
    """Share of uint8 images [n, 28, 28, 1] that the fixed classifier assigns to their ``labels`` [n]."""
    return float((digits.features_and_labels(images)[1] == labels).mean())


def _features(least: int, **arrays: np.ndarray | Array) -> list[np.ndarray]:
    """The arrays as float64 [n, d]; ValueError unless n >= ``least``, d is the same for all and values are finite."""
    checked = []
    for name, given in arrays.items():
        array = np.asarray(given)
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name}: {array.dtype}{list(array.shape)}, give floating-point features of shape [n, d]")
        if len(array) < least:
            raise ValueError(f"{name}: {len(array)} samples, give at least {least}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: NaN or infinity in the features, check the images they come from")
        checked.append(array.astype(np.float64))
    if len({array.shape[1] for array in checked}) > 1:
        sizes = ", ".join(f"{name} {np.shape(array)[1]}" for name, array in arrays.items())
        raise ValueError(f"{sizes}: the feature sizes differ, take both from the same network")
    return checked
