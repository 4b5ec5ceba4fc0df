"""The random numbers of batches: what they are today they must be in every later version."""

import numpy as np
import pytest

from jaxai.data.random import integers, permutation, stream, uniform
from jaxai.data.synthetic.mixtures import MIXTURES

STREAM = [[15726550606777476398, 7444883432361683333], [14092825244082508904, 11568278858603826222]]
POINTS = [[4.074665069580078, 1.9994158744812012], [-2.021456241607666, 1.9627375602722168]]


def test_the_numbers_are_what_they_were():
    assert stream((2, 2), 7, 1).tolist() == STREAM
    assert uniform((2,), 7, 1).tolist() == [(value >> 11) / 2**53 for value in STREAM[0]]
    assert integers(10, (2, 2), 7, 1).tolist() == [[value % 10 for value in row] for row in STREAM]
    assert permutation(4, 7, 1).tolist() == [1, 3, 2, 0]
    np.testing.assert_allclose(MIXTURES["grid"].draw(2, 7, 1), POINTS, rtol=1e-6)


def test_uniform_numbers_are():
    x = uniform((100_000,), 3)
    assert 0 <= x.min() < x.max() < 1
    assert x.mean() == pytest.approx(0.5, abs=0.005)
    assert np.bincount(integers(7, (70_000,), 3), minlength=7).std() < 250  # 93 expected
