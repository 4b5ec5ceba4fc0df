"""Scores on a mixture: perfect points, collapsed points, points between modes."""

import numpy as np
import pytest

from jaxai.data.synthetic.mixtures import MIXTURES
from jaxai.metrics.mixtures import mixture_scores


@pytest.mark.parametrize("name", MIXTURES)
def test_perfect_points(name):
    mixture = MIXTURES[name]
    modes = len(mixture.centres)
    rows = [mixture_scores(mixture.draw(2500, 0, n), mixture.centres, mixture.deviation) for n in range(50)]
    found = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
    assert found["modes"] == modes
    assert found["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=1e-3)  # within 3 deviations in the plane
    assert found["kl"] == pytest.approx((modes - 1) / 5000, rel=0.15)  # 50 draws of about half their mean


def test_collapsed_points():
    mixture = MIXTURES["grid"]
    found = mixture_scores(np.repeat(mixture.centres[:5], 10, 0), mixture.centres, mixture.deviation)
    assert found == {"modes": 5.0, "high_quality": 1.0, "kl": pytest.approx(np.log(5))}


def test_points_between_modes_count_for_nothing():
    mixture = MIXTURES["grid"]
    between = mixture.centres + 4 * np.array([mixture.deviation, 0])
    scores = (mixture.centres, mixture.deviation)
    found = mixture_scores(between, *scores)
    assert found == {"modes": 0.0, "high_quality": 0.0, "kl": pytest.approx(np.log(25))}
    found = mixture_scores(np.concatenate([between, mixture.centres[:5]]), *scores)
    assert found == {"modes": 5.0, "high_quality": pytest.approx(1 / 6), "kl": pytest.approx(np.log(5))}


def test_points_that_are_not_finite():
    with pytest.raises(ValueError, match="all finite"):
        mixture_scores(np.full((3, 2), np.nan), MIXTURES["ring"].centres, 0.01)
