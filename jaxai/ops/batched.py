"""Application of a function to many examples in batches of a fixed size."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxai.typing import PyTree


def map_batches(function: Callable[[Any], PyTree], examples: Any, batch_size: int = 100) -> Any:
    """Apply ``function`` to all examples in batches of a fixed size, so that it is compiled only once.

    ``examples`` is a pytree of arrays [n, ...], ``function`` maps a batch to a pytree of arrays [batch_size, ...].
    The last batch is filled up with the first examples, whose extra results are dropped. Returns numpy arrays [n, ...].
    Raises ValueError for n = 0.

    >>> map_batches(lambda x: x + 1, np.arange(5), batch_size=2)
    array([1, 2, 3, 4, 5])
    """
    n = len(jax.tree.leaves(examples)[0])
    if not n:
        raise ValueError("examples: none, give at least one")
    rows = [np.arange(first, first + batch_size) % n for first in range(0, n, batch_size)]
    batches = [jax.tree.map(lambda x, at=at: x[at], examples) for at in rows]
    results = jax.device_get([function(batch) for batch in batches])
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *results)
