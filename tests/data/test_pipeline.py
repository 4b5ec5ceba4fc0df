"""Batches: every example once an epoch, exact resumption, disjoint rows for each process."""

import json
import threading

import numpy as np
import pytest

from jaxai.data import ImageDataset
from jaxai.data.pipeline import batches
from jaxai.train.feed import GatheredBatches


def numbered(n: int) -> ImageDataset:
    """A data set whose labels are the row numbers."""
    images = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
    return ImageDataset("numbers", "train", images, np.arange(n, dtype=np.int32), n, "made up", False, "0" * 16)


def labels_of(iterator, steps: int) -> np.ndarray:
    return np.concatenate([next(iterator)["label"] for _ in range(steps)])


def test_what_a_batch_is():
    iterator = batches(numbered(10), 4, seed=0)
    assert isinstance(iterator, GatheredBatches)
    batch = next(iterator)
    assert batch["image"].shape == (4, 1, 1, 1)
    assert batch["image"].dtype == np.uint8
    assert {batch[name].dtype for name in ("label", "id", "epoch")} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(batch["image"].ravel(), batch["label"])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_epochs_follow_each_other_without_a_gap(batch_size):
    rows = labels_of(batches(numbered(10), batch_size, seed=5), 30 * 10 // batch_size)
    epochs = rows[: len(rows) // 10 * 10].reshape(-1, 10)
    assert np.all(np.sort(epochs, axis=1) == np.arange(10))
    assert len({tuple(epoch) for epoch in epochs}) > 20


@pytest.mark.parametrize("count", [1, 2])
def test_ids_and_epochs_say_which_example_it_is_and_how_often_it_was_seen(count):
    parts = [batches(numbered(10), 4, seed=5, process_index=i, process_count=count) for i in range(count)]
    seen = np.zeros(10, int)
    for _ in range(20):
        for part in parts:
            batch = next(part)
            np.testing.assert_array_equal(batch["id"], batch["label"])
            for row, epoch in zip(batch["id"], batch["epoch"], strict=True):
                assert epoch == seen[row]
                seen[row] += 1
    assert seen.tolist() == [8] * 10


def test_without_shuffling():
    assert labels_of(batches(numbered(5), 3, seed=0, shuffle=False), 4).tolist() == [0, 1, 2, 3, 4] * 2 + [0, 1]


def test_the_seed_alone_decides():
    first, again, other = (labels_of(batches(numbered(100), 10, seed=s), 25) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_the_order_is_the_same_in_every_version():
    """A resumed run relies on it."""
    assert labels_of(batches(numbered(8), 8, seed=3), 2).tolist() == [0, 1, 2, 7, 5, 6, 4, 3, 5, 6, 3, 7, 0, 1, 2, 4]


def test_a_restored_iterator_continues_exactly():
    iterator = batches(numbered(50), 8, seed=9)
    labels_of(iterator, 17)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = labels_of(iterator, 20)
    fresh = batches(numbered(50), 8, seed=9)
    fresh.set_state(state)
    np.testing.assert_array_equal(labels_of(fresh, 20), expected)
    iterator.set_state(state)
    np.testing.assert_array_equal(labels_of(iterator, 20), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(count):
    whole = batches(numbered(30), 8, seed=2)
    parts = [batches(numbered(30), 8, seed=2, process_index=i, process_count=count) for i in range(count)]
    for _ in range(12):
        together = np.concatenate([next(part)["label"] for part in parts])
        np.testing.assert_array_equal(together, next(whole)["label"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, but numbers train has 10 examples; choose 1 to 10"),
        ({"batch_size": 11}, "batch_size is 11"),
        ({"batch_size": 4, "process_count": 3}, "batch_size 4 is not divisible by process_count 3"),
        ({"batch_size": 4, "process_count": 2, "process_index": 2}, "process_index is 2, expected 0 to"),
        ({"batch_size": 4, "seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(10), **({"seed": 0} | arguments))


def test_it_starts_no_threads():
    before = threading.active_count()
    labels_of(batches(numbered(10), 2, seed=0), 20)
    assert threading.active_count() == before
