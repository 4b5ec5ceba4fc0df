"""Plots of attributions."""

import os
from collections.abc import Mapping

import numpy as np

from jaxai.plots.images import save_figure, to_pixels
from jaxai.typing import Array, Float, Images, Pixels


def plot_explanations(
    path: str | os.PathLike[str],
    images: Images | Pixels | Float[np.ndarray, "B height width C"],
    attributions: Mapping[str, Float[Array | np.ndarray, "B height width *C"]],
) -> None:
    """Write a PNG with one row per image: the image, then its attributions, red for and blue against the target class.

    Images are uint8 or floats in [-1, 1], with one or three channels. Attributions are [B, H, W], or [B, H, W, C] to be
    summed over the channels. Each has its own colour scale, symmetric about 0: compare patterns, not strengths.
    ValueError for no images, no attributions, other shapes, and non-finite values.
    """
    from matplotlib.figure import Figure  # imported here, as it takes 0.3 s

    pixels = to_pixels(np.asarray(images))
    if not len(pixels) or not attributions:
        raise ValueError(f"{len(pixels)} images, {len(attributions)} attributions: give at least one of each")
    maps = {name: _flat(name, np.asarray(values), pixels.shape) for name, values in attributions.items()}
    count, height, width, _ = pixels.shape
    figure = Figure(figsize=(1.6 * (1 + len(maps)), 1.6 * count * height / width + 0.3), layout="constrained")
    axes = figure.subplots(count, 1 + len(maps), squeeze=False)
    for row, pixel in zip(axes, pixels, strict=True):
        row[0].imshow(pixel, cmap="gray", vmin=0, vmax=255)
    for column, (name, values) in zip(axes.T[1:], maps.items(), strict=True):
        column[0].set_title(name, fontsize="small")
        for ax, value in zip(column, values, strict=True):
            limit = np.abs(value).max() or 1.0
            ax.imshow(value, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for ax in axes.flat:
        ax.set_axis_off()
    save_figure(path, figure)


def _flat(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if values.shape not in (shape, shape[:3]):
        raise ValueError(f"{name}: shape {values.shape} for images {shape}, give [B, H, W] or [B, H, W, C]")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: NaN or infinity among the attributions, check the classifier and the targets")
    return values.astype(np.float64).reshape(*shape[:3], -1).sum(-1)
