"""Distances between samples and effective numbers of classes, against what is known of them."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from jaxai.metrics.diversity import COMPARED, effective_classes, pairwise_distance


def test_pairwise_distance_is_scipys():
    samples = np.random.default_rng(0).normal(size=(60, 4, 3))
    assert pairwise_distance(samples) == pytest.approx(pdist(samples.reshape(60, -1)).mean(), rel=1e-12)
    many = np.random.default_rng(0).integers(256, size=(COMPARED + 9, 5)).astype(np.uint8)
    assert pairwise_distance(many) == pytest.approx(pdist(many[:COMPARED].astype(float)).mean(), rel=1e-12)


def test_equal_samples_have_no_distance():
    assert pairwise_distance(np.full((10, 28, 28, 1), 137, np.uint8)) < 1e-3
    with pytest.raises(ValueError, match="give at least 2"):
        pairwise_distance(np.zeros((1, 3)))


def test_effective_classes():
    assert effective_classes(np.repeat(np.arange(7), 5)) == pytest.approx(7)
    assert effective_classes(np.full(9, 3)) == pytest.approx(1)
    assert 1 < effective_classes(np.array([0] * 9 + [1])) < 2
