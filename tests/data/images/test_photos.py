"""Photographs and their crops."""

import numpy as np
import pytest

from jaxai.data.images.photos import PHOTOS, crop_batches, load_photos, with_halves


def test_photographs_are_colour_and_in_one_split():
    train, test = load_photos("train"), load_photos("test")
    assert not train.keys() & test.keys()
    assert tuple(train) == PHOTOS["train"]
    for photo in (*train.values(), *test.values()):
        assert photo.dtype == np.uint8
        assert photo.shape[2] == 3
        assert min(photo.shape[:2]) >= 300


@pytest.fixture
def photos():
    """Two small pictures whose pixels say where they are."""
    row, column = np.mgrid[:9, :7].astype(np.uint8)
    first = np.stack([row, column, np.zeros_like(row)], -1)
    return {"first": first, "second": first[:5, :5] + np.uint8([0, 0, 1])}


def test_crops_are_parts_of_photographs_from_everywhere(photos):
    batch = next(crop_batches(photos, 4, 4000, seed=0))["image"]
    assert batch.shape == (4000, 4, 4, 3)
    places = set()
    for crop in batch:
        (upright,) = ((n, x) for n, x in enumerate(symmetries(crop)) if (x[0, 0] <= x[-1, -1]).all() and rows_grow(x))
        row, column, which = upright[1][0, 0]
        photo = photos["second" if which else "first"]
        np.testing.assert_array_equal(upright[1], photo[row : row + 4, column : column + 4])
        places.add((row, column, which, upright[0]))
    assert len(places) == 8 * (6 * 4 + 2 * 2)  # all of them


def test_halves_are_the_photographs_seen_from_twice_as_far():
    photo = np.repeat(np.repeat(np.arange(12, dtype=np.uint8)[:, None, None] * 9, 11, 1), 3, 2)
    both = with_halves({"ramp": photo}, 5)
    assert tuple(both) == ("ramp", "ramp at half size")
    half = both["ramp at half size"]
    assert half.shape == (6, 5, 3)
    assert tuple(with_halves({"ramp": photo}, 6)) == ("ramp",)
    np.testing.assert_allclose(half[1:-1, :, 0], photo.reshape(6, 2, 11, 3).mean(1)[1:-1, :5, 0], atol=1)


def symmetries(crop: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(x, k) for x in (crop, crop[:, ::-1]) for k in range(4)]


def rows_grow(crop: np.ndarray) -> bool:
    return crop[1, 0, 0] > crop[0, 0, 0]


def test_crops_go_on_where_they_were_and_processes_share_them(photos):
    one = crop_batches(photos, 4, 8, seed=3)
    first, state = next(one)["image"], one.get_state()
    second = next(one)["image"]
    again = crop_batches(photos, 4, 8, seed=3)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["image"], second)
    assert (first != second).any()
    halves = [next(crop_batches(photos, 4, 8, seed=3, process_index=i, process_count=2))["image"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), first)


def test_crops_must_fit(photos):
    with pytest.raises(ValueError, match="size is 6, but second is 5x5"):
        crop_batches(photos, 6, 8, seed=0)
