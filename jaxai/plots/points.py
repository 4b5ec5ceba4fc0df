"""Plots of points in the plane."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from jaxai.plots.images import grid

MODE, POINT = (255, 190, 120), (20, 40, 110)
MARGIN = 1.25  # ratio of the plotted range to the largest coordinate of a mode


def draw_points(
    points: Sequence[Float[np.ndarray, "n 2"]] | Float[np.ndarray, "sets n 2"],
    centres: Float[np.ndarray, "modes 2"],
    side: int = 128,
) -> UInt8[np.ndarray, "height width 3"]:
    """A row of square plots, one per set of points: mode ``centres`` in orange, points in blue."""
    reach = MARGIN * np.abs(centres).max()
    cells = np.full((len(points), side, side, 3), 255, np.uint8)
    for cell, rows in zip(cells, points, strict=True):
        for places, colour, width in ((centres, MODE, 2), (rows, POINT, 0)):
            column, row = np.rint((places * (1, -1) / reach + 1) / 2 * (side - 1)).astype(int).T
            inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
            for x, y in zip(column[inside], row[inside], strict=True):
                cell[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1] = colour
    return grid(cells, columns=len(cells))
