"""Groups of examples of about one length: the least padding, every example equally often, rows of processes."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxai.data.buckets import grouped, length_groups
from jaxai.data.text.pairs import buckets
from tests.data.conftest import made_up

# Buckets


def places(groups) -> int:
    return sum(len(group.rows) * (group.source_length + group.target_length) for group in groups)


def test_the_groups_leave_the_fewest_places_to_padding():
    """Against every way to cut the lengths into at most 8 groups."""
    sources, targets = made_up(60, longest=11)
    lengths = np.array([[len(s), len(t)] for s, t in zip(sources, targets, strict=True)])
    longer = lengths.max(1)
    values = np.unique(longer)
    least = np.inf
    for count in range(8):
        for cuts in itertools.combinations(values[1:], count):
            which = np.searchsorted(cuts, longer, side="right")
            parts = [lengths[which == i] for i in range(count + 1)]
            least = min(least, sum(len(part) * part.max(0).sum() for part in parts))
    groups = buckets(sources, targets, 100)
    assert len(groups) == 8 < len(values)
    assert places(groups) == least


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), shapes=st.integers(1, 6))
def test_groups_cover_every_length_once_in_order(lengths, shapes):
    lengths = np.array(lengths)
    groups = length_groups(lengths, lengths[:, None], shapes)
    assert len(groups) == min(shapes, len(set(lengths.tolist())))
    assert groups == sorted(groups)
    for length in lengths:
        assert sum(low <= length <= high for low, high in groups) == 1
    assert {end for group in groups for end in group} <= set(lengths.tolist())


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40), shapes=st.integers(1, 5))
def test_one_more_group_never_needs_more_padding(lengths, shapes):
    lengths = np.array(lengths)
    padding = []
    for count in (shapes, shapes + 1):
        highs = np.array([high for _, high in length_groups(lengths, lengths[:, None], count)])
        padding.append((highs[np.searchsorted(highs, lengths)] - lengths).sum())
    assert padding[1] <= padding[0]


GROUPS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=4)


@given(groups=GROUPS, seed=st.integers(0, 9), epochs=st.integers(1, 6))
def test_every_example_of_a_group_comes_equally_often(groups, seed, epochs):
    """A group's epochs follow each other without a gap: after whole batches no count is more than one ahead."""
    batch = grouped(groups, seed=seed)
    seen = [Counter({row: 0 for row in range(size)}) for size, _ in groups]
    for index in range(sum(epochs * size // batch_size for size, batch_size in groups)):
        group, rows = batch(index)
        assert rows.shape == (groups[group][1],)
        seen[group].update(rows.tolist())
    for (size, batch_size), counts in zip(groups, seen, strict=True):
        assert sum(counts.values()) == epochs * size // batch_size * batch_size
        assert set(counts) == set(range(size))
        assert max(counts.values()) - min(counts.values()) <= -(-batch_size // size)


@given(groups=GROUPS, count=st.integers(1, 4), index=st.integers(0, 50))
def test_processes_take_neighbouring_rows_of_one_batch(groups, count, index):
    groups = [(size, batch_size * count) for size, batch_size in groups]
    parts = [grouped(groups, seed=3, process_index=i, process_count=count)(index) for i in range(count)]
    group, whole = grouped(groups, seed=3)(index)
    assert {number for number, _ in parts} == {group}
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), whole)


def test_batches_may_be_asked_for_in_any_order():
    groups = [(7, 2), (5, 3), (1, 1)]
    forward, backward = grouped(groups, seed=1), grouped(groups, seed=1)
    expected = [forward(index) for index in range(60)]
    for index in reversed(range(60)):
        group, rows = backward(index)
        assert group == expected[index][0]
        np.testing.assert_array_equal(rows, expected[index][1])


def test_the_seed_decides_the_order():
    first, again, other = ([grouped([(30, 4)], seed=seed)(i)[1].tolist() for i in range(10)] for seed in (0, 0, 1))
    assert first == again != other
