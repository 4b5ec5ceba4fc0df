"""Domains of digits: what is drawn can be undone, and unpaired batches go on where they were."""

import numpy as np
import pytest

from jaxai.data.images.domains import DRAWN, TO_GREY, coloured, uncoloured, unpaired_batches, upscaled

EVERY_GREY = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 28, 2, 1))
A = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1) * np.ones((1, 28, 28, 1), np.uint8)
B = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1) * np.ones((1, 28, 28, 3), np.uint8)


@pytest.mark.parametrize("look", ["inverted", "coloured"])
def test_every_grey_value_comes_back_from_every_row(look):
    drawn = DRAWN[look](EVERY_GREY)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (*EVERY_GREY.shape[:3], 3 if look == "coloured" else 1)
    np.testing.assert_array_equal(TO_GREY[look](drawn), EVERY_GREY)


def test_ink_is_dark_on_bright_paper_that_changes_downwards():
    drawn = coloured(np.stack([np.zeros((28, 28, 1), np.uint8), np.full((28, 28, 1), 255, np.uint8)])).astype(int)
    paper, ink = drawn
    assert (paper.sum(-1) > ink.sum(-1) + 300).all()
    assert (ink == ink[0, 0]).all()
    assert (paper[0, 0] != paper[-1, 0]).any()
    assert (paper == paper[:, :1]).all()


def test_other_colours_are_the_nearest_grey():
    far = np.uint8([[[[255, 255, 255]], [[0, 0, 0]]]])  # beyond paper and ink
    np.testing.assert_array_equal(uncoloured(far).ravel(), [0, 255])
    drawn = coloured(EVERY_GREY).astype(int)
    noise = np.random.default_rng(0).integers(-2, 3, drawn.shape)
    found = uncoloured((drawn + noise).clip(0, 255).astype(np.uint8)).astype(int)
    assert np.abs(found - EVERY_GREY).max() <= 4


def test_small_digits_grow_by_bicubic_interpolation():
    rows = np.arange(8) * 20 + 50
    ramp = np.broadcast_to(rows[None, :, None, None], (2, 8, 8, 1)).astype(np.uint8)
    large = upscaled(ramp)
    assert large.shape == (2, 28, 28, 1)
    assert large.dtype == np.uint8
    inside = (np.arange(20) + 0.5) * 8 / 20 - 0.5  # a cubic kernel is exact on a ramp, away from the edges
    expected = np.interp(inside, np.arange(8), rows)[5:15]
    np.testing.assert_allclose(large[0, 9:19, 14, 0], expected, atol=1)
    assert not large[0, :4].any()
    assert not large[0, :, 24:].any()
    np.testing.assert_array_equal(TO_GREY["small"](large), large)


def test_batches_are_drawn_from_each_look_by_itself():
    batches = unpaired_batches(A, B, 40, seed=1)
    found = [next(batches) for _ in range(20)]
    a, b = (np.concatenate([batch[name][:, 0, 0, 0] for batch in found]) for name in ("a", "b"))
    assert found[0]["a"].shape == (40, 28, 28, 1)
    assert found[0]["b"].shape == (40, 28, 28, 3)
    assert set(a.tolist()) == set(range(50))
    assert set(b.tolist()) == set(range(30))
    assert len(set(zip(a.tolist(), b.tolist(), strict=True))) > 500  # of 1,500 pairs: nothing belongs together


def test_batches_go_on_where_they_were_and_processes_share_them():
    batches = unpaired_batches(A, B, 6, seed=3)
    first, second = next(batches), next(batches)
    again = unpaired_batches(A, B, 6, seed=3)
    again.set_state({"next_index": 1})
    half = next(unpaired_batches(A, B, 6, seed=3, process_index=1, process_count=2))
    for name, value in next(again).items():
        np.testing.assert_array_equal(value, second[name])
        np.testing.assert_array_equal(half[name], first[name][3:])
        assert (first[name] != second[name]).any()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 5, "process_count": 2}, "batch_size 5 is not divisible"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_sizes(arguments, word):
    with pytest.raises(ValueError, match=word):
        unpaired_batches(**{"a": A, "b": B, "batch_size": 4, "seed": 0} | arguments)
