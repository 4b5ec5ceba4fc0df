"""Length bucketing: batches of examples of similar length, so few shapes to compile and little padding."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, Integer

from jaxai.data.random import permutation


def length_groups(
    longest: Integer[np.ndarray, " n"], lengths: Integer[np.ndarray, "n sides"], shapes: int
) -> list[tuple[int, int]]:
    """The length ranges, (shortest, longest), of at most ``shapes`` groups of examples with the least total padding.

    Examples are grouped by ``longest``. ``lengths`` holds the length of each side of an example (source and target,
    say); each side is padded to its maximum in the group. Solved by dynamic programming over the distinct lengths.

    >>> lengths = np.array([3, 3, 4, 9, 10])
    >>> length_groups(lengths, lengths[:, None], 2)
    [(3, 4), (9, 10)]
    """
    values, which = np.unique(longest, return_inverse=True)
    n = len(values)
    sides = np.zeros((n, lengths.shape[1]), np.int64)
    np.maximum.at(sides, which, lengths)
    counts = np.bincount(which)
    cost = np.full((n, n + 1), np.inf)  # padded size of the group with lengths first ... end - 1
    for first in range(n):
        widths = np.maximum.accumulate(sides[first:], axis=0).sum(axis=1)
        cost[first, first + 1 :] = np.cumsum(counts[first:]) * widths
    least, choices = np.append(0, np.full(n, np.inf)), []
    for _ in range(min(shapes, n)):
        totals = least[:n, None] + cost
        choices.append(totals.argmin(axis=0))
        least = totals.min(axis=0)
    groups, end = [], n
    for first in reversed(choices):
        groups.append((int(values[first[end]]), int(values[end - 1])))
        end = first[end]
    return groups[::-1]


def grouped(
    groups: Sequence[tuple[int, int]], *, seed: int, process_index: int = 0, process_count: int = 1
) -> Callable[[int], tuple[int, Int64[np.ndarray, " rows"]]]:
    """Return a function from a batch index to the batch's group and this process's rows of that group.

    ``groups`` holds (number of examples, batch size). Examples and batches are reshuffled in every epoch and depend on
    ``seed`` alone. A group's epochs follow each other without a gap: all examples occur equally often, and the
    examples that do not fill a batch at the end of an epoch start the next one.
    """
    sizes, batch_sizes = np.array(groups).T

    def before(epoch: int) -> np.ndarray:
        """The number of complete batches of each group before an epoch."""
        return epoch * sizes // batch_sizes

    @functools.lru_cache(maxsize=2)
    def plan(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The group of each batch of an epoch, and the batch's number within the group."""
        begin, end = before(epoch), before(epoch + 1)
        group = np.repeat(np.arange(len(groups)), end - begin)
        number = np.concatenate([np.arange(b, e) for b, e in zip(begin, end, strict=True)])
        shuffled = permutation(len(group), seed, epoch, 0)
        return group[shuffled], number[shuffled]

    @functools.lru_cache(maxsize=3 * len(groups))
    def order(group: int, epoch: int) -> Int64[np.ndarray, " n"]:
        return permutation(int(sizes[group]), seed, epoch, group + 1)

    def rows(group: int, start: int, count: int) -> np.ndarray:
        """Entries ``start`` ... ``start + count - 1`` of a group's concatenated epoch orders."""
        epochs, places = np.divmod(np.arange(start, start + count), sizes[group])
        return np.concatenate([order(group, epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()])

    def batch(index: int) -> tuple[int, Int64[np.ndarray, " rows"]]:
        epoch = int(index / (sizes / batch_sizes).sum())  # a lower bound: unfinished batches do not count
        while before(epoch + 1).sum() <= index:
            epoch += 1
        group, number = (int(one[index - before(epoch).sum()]) for one in plan(epoch))
        local = int(batch_sizes[group]) // process_count
        return group, rows(group, number * int(batch_sizes[group]) + process_index * local, local)

    return batch
