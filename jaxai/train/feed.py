"""Feeding batches to the step: assembled on the host, or gathered from a data set kept on the device."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxai.distributed.sharding import batch_sharding, put_batch
from jaxai.typing import PyTree

logger = logging.getLogger(__name__)

RESIDENT_BYTES = 10**9  # larger data sets stay in host memory


@runtime_checkable
class Batches(Iterator[Any], Protocol):
    """An endless iterator over numpy batches whose position can be saved and restored, such as grain's iterators."""

    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class GatheredBatches(Batches, Protocol):
    """Batches computed as ``gather(arrays, rows)`` from numpy or traced arrays, as in `jaxai.data.pipeline.Gathered`.

    ``rows`` iterates over the inputs that select each batch's examples, such as their indices, and holds the position.
    """

    arrays: Any
    rows: Any

    def gather(self, arrays: PyTree, rows: PyTree) -> PyTree: ...


@dataclasses.dataclass(frozen=True)
class Feed:
    """Input of the training step.

    For each step the host sends ``next(rows)``, and the compiled step computes its batch as ``batch(arrays, rows)``
    from the ``arrays`` on the device.
    """

    rows: Batches
    arrays: PyTree
    batch: Callable[[PyTree, PyTree], PyTree]


def feed_of(batches: Batches, mesh: Mesh, *, resident: bool) -> Feed:
    """The feed of these batches; if ``resident``, data sets below 1 GB are replicated on the devices.

    The host then sends only row indices. Batches and their saved position are the same either way.
    """
    if not resident or not isinstance(batches, GatheredBatches):
        return Feed(batches, (), lambda arrays, rows: rows)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(batches.arrays))
    if size >= RESIDENT_BYTES:
        return Feed(batches, (), lambda arrays, rows: rows)
    arrays = put_batch(batches.arrays, NamedSharding(mesh, PartitionSpec()))
    logger.info("keeping the data set (%.0f MB) on the device", size / 1e6)

    def batch(arrays: PyTree, rows: PyTree) -> PyTree:
        sharding = batch_sharding(mesh)
        made = batches.gather(arrays, rows)
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), made)

    return Feed(batches.rows, arrays, batch)
