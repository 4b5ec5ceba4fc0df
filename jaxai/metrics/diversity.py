"""Diversity of samples, which reveals a collapsed generator."""

import numpy as np
from jaxtyping import Int, Num

COMPARED = 500
"""Number of samples that are compared with each other."""


def pairwise_distance(samples: Num[np.ndarray, "n ..."]) -> float:
    """Mean Euclidean distance between pairs of the first 500 samples [n, ...]. ValueError for fewer than two."""
    if len(samples) < 2:
        raise ValueError(f"samples: {len(samples)}, give at least 2")
    x = np.asarray(samples[:COMPARED], np.float64).reshape(min(len(samples), COMPARED), -1)
    squares = (x**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))
    np.fill_diagonal(distances, 0)  # removes rounding errors
    return float(distances.sum() / (len(x) * (len(x) - 1)))


def effective_classes(labels: Int[np.ndarray, " n"]) -> float:
    """exp(-sum p ln p) of the labels' shares p: the number of equally frequent classes of that entropy (Hill 1973)."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(np.exp(-(shares * np.log(shares)).sum()))
