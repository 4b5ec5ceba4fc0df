"""Similarity of restored images to the originals: PSNR and SSIM, by scikit-image."""

from collections.abc import Sequence

import numpy as np

from jaxai.metrics.digits import features_and_labels
from jaxai.metrics.generation import recognised

LUMA = np.array([65.481, 128.553, 24.966]) / 255  # BT.601 weights, with an offset of 16, as in MATLAB's rgb2ycbcr


def image_scores(restored: np.ndarray, originals: np.ndarray, *, border: int = 0) -> dict[str, float]:
    """Means over uint8 images [n, height, width, C] of ``psnr`` in dB and ``ssim``.

    Following the super-resolution literature, colour images are reduced to their luma Y, and ``border`` pixels are
    cropped at each side; SSIM uses 11x11 Gaussian windows of standard deviation 1.5, K1 = 0.01, K2 = 0.03 (Wang et al.
    2004). The PSNR of identical images counts as 100 dB. ValueError for other shapes or dtypes, and images smaller than
    a window.
    """
    from skimage.metrics import structural_similarity  # slow to import, and only some commands need it

    if restored.shape != originals.shape or restored.ndim != 4 or restored.shape[-1] not in (1, 3):
        shapes = f"{list(restored.shape)} and {list(originals.shape)}"
        raise ValueError(f"restored, originals: {shapes}, give [n, height, width, 1 or 3] twice")
    if restored.dtype != np.uint8 or originals.dtype != np.uint8:
        raise ValueError(f"restored, originals: {restored.dtype} and {originals.dtype}, give uint8")
    if min(restored.shape[1:3]) - 2 * border < 11 or not len(restored):
        raise ValueError(f"restored: shape {list(restored.shape)}, give images of at least 11 pixels inside the border")
    inside = slice(border, -border or None)
    pairs = [(luma(a)[inside, inside], luma(b)[inside, inside]) for a, b in zip(restored, originals, strict=True)]
    windows = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255.0}
    ssim = [structural_similarity(a, b, **windows) for a, b in pairs]
    return {"psnr": float(np.mean([psnr(a, b) for a, b in pairs])), "ssim": float(np.mean(ssim))}


def restoration_scores(
    restored: Sequence[np.ndarray], originals: Sequence[np.ndarray], *, border: int, digits: bool
) -> dict[str, float]:
    """Means of `image_scores` over groups of images [n, height, width, C], each of one size.

    With ``digits`` also ``same_class``: the share of the first group's images that the fixed classifier assigns to the
    same class as their originals.
    """
    found = [image_scores(a, b, border=border) for a, b in zip(restored, originals, strict=True)]
    means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
    if digits:
        means["same_class"] = recognised(restored[0], features_and_labels(originals[0])[1])
    return means


def psnr(image: np.ndarray, original: np.ndarray) -> float:
    """10 log10(255^2 / mean squared difference), at most 100."""
    from skimage.metrics import peak_signal_noise_ratio  # slow to import, and only some commands need it

    if np.array_equal(image, original):
        return 100.0
    return min(100.0, float(peak_signal_noise_ratio(original, image, data_range=255.0)))


def luma(image: np.ndarray) -> np.ndarray:
    """The luma Y of a colour image, or the values of a grey one: float64 [height, width]."""
    image = image.astype(np.float64)
    return 16 + image @ LUMA if image.shape[-1] == 3 else image[..., 0]
