"""Stacks of three digits: what their channels are, fixed sets, and an iterator that goes on where it was."""

import numpy as np
import pytest

from jaxai.data.images.stacked import fixed_rows, stack_batches, stacked

IMAGES = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1) * np.ones((1, 28, 28, 1), np.uint8)


def test_channels_are_the_digits():
    found = stacked(IMAGES, np.array([[3, 0, 49], [7, 7, 1]]))
    assert found.shape == (2, 28, 28, 3)
    np.testing.assert_array_equal(found[:, 5, 5], [[3, 0, 49], [7, 7, 1]])


def test_a_fixed_set_has_so_many_stacks():
    batches = stack_batches(IMAGES, 40, seed=1, fixed=30)
    found = np.concatenate([next(batches)["image"][:, 0, 0] for _ in range(20)])
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in fixed_rows(30, 50, 1).tolist()}
    new = stack_batches(IMAGES, 40, seed=1)
    assert len({tuple(row) for _ in range(20) for row in next(new)["image"][:, 0, 0].tolist()}) > 700


@pytest.mark.parametrize("fixed", [0, 30])
def test_batches_go_on_where_they_were_and_processes_share_them(fixed):
    batches = stack_batches(IMAGES, 6, seed=3, fixed=fixed)
    first, second = next(batches)["image"], next(batches)["image"]
    again = stack_batches(IMAGES, 6, seed=3, fixed=fixed)
    again.set_state({"next_index": 1})
    np.testing.assert_array_equal(next(again)["image"], second)
    half = stack_batches(IMAGES, 6, seed=3, fixed=fixed, process_index=1, process_count=2)
    np.testing.assert_array_equal(next(half)["image"], first[3:])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"batch_size": 0}, "batch_size is 0"), ({"fixed": -1}, "fixed is -1"), ({"seed": -1}, "seed")],
)
def test_bad_sizes(arguments, word):
    with pytest.raises(ValueError, match=word):
        stack_batches(**{"images": IMAGES, "batch_size": 4, "seed": 0} | arguments)
