"""Pictures of points in the plane."""

import numpy as np

from jaxai import plots


def test_points_lie_over_modes_and_outside_ones_are_left_out():
    centres = np.array([[1.0, 0.0], [-1.0, 0.0]])
    canvas = plots.draw_points(np.array([[[1.0, 0.0], [0.0, 9.0]]] * 2), centres, side=101)
    assert canvas.shape == (101, 203, 3)
    assert canvas[50, 90].tolist() == [20, 40, 110]  # 1 of 1.25 to the right of the middle
    assert canvas[50, 91].tolist() == canvas[50, 10].tolist() == [255, 190, 120]
    assert (canvas[:, :101] == [20, 40, 110]).all(-1).sum() == 1
