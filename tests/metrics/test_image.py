"""PSNR and SSIM against their definitions."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxai.metrics.image import image_scores


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (3, 20, 24, 3), np.uint8)
    return np.clip(originals + rng.normal(0, 20, originals.shape), 0, 255).astype(np.uint8), originals


def test_scores_are_those_of_the_definitions(pairs):
    scores, psnr, ssim = image_scores(*pairs, border=2), [], []
    for pair in zip(*pairs, strict=True):
        a, b = (16 + (x[2:-2, 2:-2] / 255.0) @ [65.481, 128.553, 24.966] for x in pair)
        psnr.append(10 * np.log10(255**2 / ((a - b) ** 2).mean()))

        def mean(x):
            return gaussian_filter(x, 1.5, truncate=3.5)

        variance, other = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        value = (2 * mean(a) * mean(b) + c1) * (2 * (mean(a * b) - mean(a) * mean(b)) + c2)
        value /= (mean(a) ** 2 + mean(b) ** 2 + c1) * (variance + other + c2)
        ssim.append(value[5:-5, 5:-5].mean())
    assert scores["psnr"] == pytest.approx(np.mean(psnr), rel=1e-9)
    assert scores["ssim"] == pytest.approx(np.mean(ssim), rel=1e-6)


def test_equal_images_score_highest(pairs):
    assert image_scores(pairs[1], pairs[1]) == {"psnr": 100.0, "ssim": pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :, :-1], r"give \[n, height, width, 1 or 3\] twice"),
        (lambda x: x / 255.0, "give uint8"),
    ],
)
def test_bad_input(pairs, change, message):
    with pytest.raises(ValueError, match=message):
        image_scores(change(pairs[0]), pairs[1])


def test_small_images(pairs):
    with pytest.raises(ValueError, match="at least 11 pixels inside the border"):
        image_scores(*pairs, border=5)
