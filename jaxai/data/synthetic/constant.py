"""Full-batch iteration: the same batch in every step, for data sets so small that it holds all examples."""

from collections.abc import Mapping

import grain
import numpy as np

from jaxai.data.pipeline import check_rows, endless, own_rows


def constant_batches(
    examples: Mapping[str, np.ndarray], *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """An endless iterator of the same arrays [n, ...]; each process gets its own rows.

    Raises ``ValueError`` if n is not divisible by ``process_count``.
    """
    n = len(next(iter(examples.values())))
    check_rows(n, process_index, process_count)
    rows = own_rows(n, process_index, process_count)
    return endless(lambda index: {name: array[rows] for name, array in examples.items()})
