"""One batch again and again, split over processes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxai.data.synthetic.constant import constant_batches
from jaxai.train.feed import Batches

EXAMPLES = {"x": np.arange(12.0).reshape(6, 2), "y": np.arange(6)}


def test_every_batch_is_all_examples():
    iterator = constant_batches(EXAMPLES)
    assert isinstance(iterator, Batches)
    for _ in range(3):
        batch = next(iterator)
        assert batch.keys() == EXAMPLES.keys()
        for name, array in EXAMPLES.items():
            np.testing.assert_array_equal(batch[name], array, strict=True)


@given(share=st.integers(1, 4), count=st.integers(1, 4))
def test_processes_share_the_rows(share, count):
    examples = {"x": np.arange(share * count)}
    parts = [next(constant_batches(examples, process_index=i, process_count=count))["x"] for i in range(count)]
    assert {len(part) for part in parts} == {share}
    np.testing.assert_array_equal(np.concatenate(parts), examples["x"])


def test_the_position_is_saved_and_restored():
    iterator = constant_batches(EXAMPLES)
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_index": 5}
    fresh = constant_batches(EXAMPLES)
    fresh.set_state(state)
    next(fresh)
    assert fresh.get_state() == {"next_index": 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"process_count": 4}, "batch_size 6 is not divisible by process_count 4"),
        ({"process_index": 2, "process_count": 2}, "process_index is 2, expected 0 to"),
    ],
)
def test_bad_processes(arguments, message):
    with pytest.raises(ValueError, match=message):
        constant_batches(EXAMPLES, **arguments)


def test_no_examples():
    with pytest.raises(ValueError, match="batch_size is 0"):
        constant_batches({"x": np.zeros((0, 2))})
