"""Scores of stacked digits: real stacks, collapsed ones, and the floor of a perfect generator."""

import numpy as np
import pytest

from jaxai.data import load
from jaxai.data.images.stacked import stacked
from jaxai.metrics.digits import confidence, features_and_labels
from jaxai.metrics.stacked import kl_floor, stack_labels, stacked_scores


@pytest.fixture(scope="module")
def digits():
    return load("mnist", "test", embedded_only=True)


def test_real_stacks_have_their_digits_as_mode(digits):
    rows = np.random.default_rng(0).integers(len(digits.labels), size=(200, 3))
    mode, sure = stack_labels(stacked(digits.images, rows))
    wanted = digits.labels[rows] @ np.array([100, 10, 1])
    assert (mode == wanted).mean() > 0.95  # the classifier knows more than 98 % of the digits
    assert ((sure >= 0) & (sure <= 1)).all()
    assert (mode == wanted)[sure >= 0.99].mean() > 0.98


def test_confidence_is_the_probability_of_the_label(digits):
    features, labels = features_and_labels(digits.images[:100])
    sure = confidence(features)
    assert ((sure >= 0) & (sure <= 1)).all()
    right = labels == digits.labels[:100]
    assert sure[right].mean() > 0.98


def test_scores():
    every = stacked_scores(np.arange(1000), np.linspace(0, 1, 1000))
    assert every == {"modes": 1000, "certain_modes": 10, "kl": pytest.approx(0, abs=1e-9)}
    one = stacked_scores(np.full(50, 7), np.ones(50))
    assert one == {"modes": 1, "certain_modes": 1, "kl": pytest.approx(np.log(1000))}


def test_floor_of_equal_digits():
    mean, deviation = kl_floor(np.arange(10))
    assert mean == pytest.approx(999 / 52_000, rel=0.03)  # 20 draws of 0.0009 deviation
    assert 0.0004 < deviation < 0.0016
    few, _ = kl_floor(np.stack([np.arange(10)] * 3, 1), draws=2)
    assert few == pytest.approx(np.log(100), abs=0.01)  # ten stacks: ten modes of a thousand


def test_images_without_three_channels():
    with pytest.raises(ValueError, match="give uint8 images of shape"):
        stack_labels(np.zeros((3, 28, 28, 1), np.uint8))
