"""How well points cover a mixture of Gaussians in the plane: modes, quality, balance."""

import numpy as np
from jaxtyping import Float

from jaxai.typing import Array


def mixture_scores(
    points: Float[np.ndarray | Array, "n 2"], centres: Float[np.ndarray, "modes 2"], deviation: float
) -> dict[str, float]:
    """``modes``, ``high_quality``, ``kl`` of points [n, 2] against equally likely Gaussians around centres [modes, 2].

    A point belongs to its nearest centre, and is of high quality within three standard deviations of it. ``modes`` have
    at least one such point, ``high_quality`` is their share of all. ``kl`` = sum p ln(modes p), p the share of points
    that belong to each centre, in nats: (modes - 1) / (2 n) for n perfect samples, on average.

    Source: Lin et al. 2018, arXiv 1712.04086 (PacGAN), with n = 2,500. ValueError where points are not
    finite.
    """
    points = np.asarray(points, np.float64)
    if not len(points) or not np.isfinite(points).all():
        raise ValueError(f"points of shape {points.shape}: give at least one, all finite")
    distances = np.linalg.norm(points[:, None] - centres, axis=-1)
    nearest, good = distances.argmin(1), distances.min(1) <= 3 * deviation
    share = np.bincount(nearest, minlength=len(centres)) / len(points)
    kl = float((share[share > 0] * np.log(len(centres) * share[share > 0])).sum())
    return {"modes": float(len(set(nearest[good]))), "high_quality": float(good.mean()), "kl": kl}
