"""A function over many examples, in batches of one size."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxai.typing import PyTree


def map_batches(function: Callable[[Any], PyTree], examples: Any, batch_size: int = 100) -> Any:
    """``function`` of all examples, in batches of one size, so that one compiled program serves any number of them.

    ``examples`` is a pytree of arrays [n, ...], ``function`` maps a batch to a pytree of arrays [batch_size, ...].
    The first examples fill the last batch; their results are dropped. Returns numpy arrays [n, ...].
    ValueError without examples.

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
