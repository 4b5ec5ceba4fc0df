"""Scores of stacked digits: how many of the 1,000 modes are generated, and how evenly."""

import numpy as np
from jaxtyping import Float, Int

from jaxai.metrics import digits
from jaxai.metrics.generation import histogram, histogram_kl
from jaxai.typing import Array

MODES = 1000
SAMPLES = 26_000
"""Number of generated images scored in the literature; the KL depends on it."""


def stack_labels(images: np.ndarray | Array) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The mode 0 ... 999 of uint8 images [n, 28, 28, 3], and the classifier's lowest confidence over their channels.

    ValueError for other shapes or dtypes.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28, 3) or not len(images):
        raise ValueError(f"images: {images.dtype}{list(images.shape)}, give uint8 images of shape [n >= 1, 28, 28, 3]")
    features, labels = digits.features_and_labels(np.moveaxis(images, -1, 0).reshape(-1, 28, 28, 1))
    return modes_of(labels.reshape(3, -1).T), digits.confidence(features).reshape(3, -1).min(0)


def modes_of(labels: Int[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """The number 0 ... 999 whose decimal digits are the channels' labels."""
    return labels @ np.array([100, 10, 1])


def stacked_scores(
    mode: Int[np.ndarray, " n"], sure: Float[np.ndarray, " n"], certain: float = 0.99
) -> dict[str, float]:
    """The number of ``modes`` with a sample, of ``certain_modes`` with a sample of high confidence, and ``kl``.

    High confidence means ``sure`` >= ``certain``. kl = sum p ln(1000 p) in nats, p the share of samples of each mode:
    on average 999 / (2 n) for n samples of equally likely modes, 0.0192 for 26,000. Source: Srivastava et al. 2017,
    arXiv 1705.07761 (VEEGAN).
    """
    counts = histogram(mode, MODES)
    kl = histogram_kl(counts, np.ones(MODES))
    return {"modes": int(np.count_nonzero(counts)), "certain_modes": len(set(mode[sure >= certain])), "kl": kl}


def kl_floor(
    labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 3"], seed: int = 0, draws: int = 20
) -> tuple[float, float]:
    """Mean and standard deviation of the ``kl`` of 26,000 real stacks, the value of a perfect generator.

    ``labels`` are those of single digits [n], stacked at random, or of a fixed set of stacks [n, 3].
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        shape = (SAMPLES, 3) if labels.ndim == 1 else (SAMPLES,)
        mode = modes_of(labels[rng.integers(len(labels), size=shape)])
        found.append(stacked_scores(mode, np.ones(len(mode)))["kl"])
    return float(np.mean(found)), float(np.std(found))
