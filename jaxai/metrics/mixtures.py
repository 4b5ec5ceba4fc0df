"""How well points cover a mixture of 2-D Gaussians: number of modes, quality, balance."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from jaxai.metrics.generation import histogram, histogram_kl
from jaxai.typing import Array


def mixture_scores(
    points: Float[np.ndarray | Array, "n 2"], centres: Float[np.ndarray, "modes 2"], deviation: float
) -> dict[str, float]:
    """``modes``, ``high_quality``, ``kl`` of points [n, 2] against equally likely Gaussians around centres [modes, 2].

    A point is of high quality if it lies within three standard deviations of its nearest centre. ``modes`` is the
    number of modes with at least one such point, ``high_quality`` the share of such points. ``kl`` = sum p ln(modes p)
    in nats, p the share of each mode among the high-quality points: on average (modes - 1) / (2 n) for n perfect
    samples; ln(modes), the maximum, if there are no such points.

    Source: Lin et al. 2018, arXiv 1712.04086 (PacGAN), and its code, with n = 2,500. ValueError for no points, and for
    points that are not finite.
    """
    points = np.asarray(points, np.float64)
    if not len(points) or not np.isfinite(points).all():
        raise ValueError(f"points of shape {points.shape}: give at least one, all finite")
    number, distance = nearest(points, centres)
    good = distance <= 3 * deviation
    counts = histogram(number[good], len(centres))
    kl = histogram_kl(counts, np.ones(len(centres))) if good.any() else float(np.log(len(centres)))
    return {"modes": float(np.count_nonzero(counts)), "high_quality": float(good.mean()), "kl": kl}


def score_lists(
    points: Iterable[Float[np.ndarray, "n 2"]], centres: Float[np.ndarray, "modes 2"], deviation: float
) -> dict[str, list[float]]:
    """`mixture_scores` of several sets of points, as one list per score."""
    found = [mixture_scores(rows, centres, deviation) for rows in points]
    return {name: [row[name] for row in found] for name in found[0]}


def nearest(
    points: Float[np.ndarray, "n 2"], centres: Float[np.ndarray, "modes 2"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The index of each point's nearest centre, and the distance to it."""
    distances = np.linalg.norm(points[:, None] - centres, axis=-1)
    return distances.argmin(1), distances.min(1)
