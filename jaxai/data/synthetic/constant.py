"""One batch again and again: all examples of a data set so small that every step sees them all."""

from collections.abc import Mapping

import grain
import numpy as np

from jaxai.data.pipeline import check_rows, endless, own_rows


def constant_batches(
    examples: Mapping[str, np.ndarray], *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """An endless iterator of the same arrays [n, ...], of which each process gets its rows.

    Raises ``ValueError`` if the processes do not divide n.
    """
    n = len(next(iter(examples.values())))
    check_rows(n, process_index, process_count)
    rows = own_rows(n, process_index, process_count)
    return endless(lambda index: {name: array[rows] for name, array in examples.items()})
