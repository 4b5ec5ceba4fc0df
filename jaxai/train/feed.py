"""How batches come to the step: made on the host, or gathered from a data set that stays on the device."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxai.distributed.sharding import batch_sharding, put_batch
from jaxai.typing import PyTree

logger = logging.getLogger(__name__)

RESIDENT_BYTES = 10**9  # a larger data set stays in the host's memory


@runtime_checkable
class Batches(Iterator[Any], Protocol):
    """An endless iterator over batches (numpy) whose position can be saved: grain's iterators are such."""

    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class GatheredBatches(Batches, Protocol):
    """Batches that are ``gather(arrays, rows)``, for numpy arrays or traced ones: `jaxai.data.pipeline.Gathered`.

    ``rows`` is the iterator over what names a batch's examples, such as their numbers, and has the batches' position.
    """

    arrays: Any
    rows: Any

    def gather(self, arrays: PyTree, rows: PyTree) -> PyTree: ...


@dataclasses.dataclass(frozen=True)
class Feed:
    """For each step the host sends ``next(rows)``; with the ``arrays`` on the device ``batch(arrays, rows)`` is the
    batch that the step takes, made inside its program."""

    rows: Batches
    arrays: PyTree
    batch: Callable[[PyTree, PyTree], PyTree]


def feed_of(batches: Batches, mesh: Mesh, *, resident: bool) -> Feed:
    """Batches as they are or, if ``resident`` and of data below 1 GB, by row numbers of arrays that every device has.

    Both give the same batches, and the same position of them.
    """
    if not resident or not isinstance(batches, GatheredBatches):
        return Feed(batches, (), lambda arrays, rows: rows)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(batches.arrays))
    if size >= RESIDENT_BYTES:
        return Feed(batches, (), lambda arrays, rows: rows)
    arrays = put_batch(batches.arrays, NamedSharding(mesh, PartitionSpec()))
    logger.info("the data, %.0f MB, stays on the device", size / 1e6)

    def batch(arrays: PyTree, rows: PyTree) -> PyTree:
        sharding = batch_sharding(mesh)
        made = batches.gather(arrays, rows)
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), made)

    return Feed(batches.rows, arrays, batch)
