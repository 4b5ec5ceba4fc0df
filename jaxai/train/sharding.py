"""Meshes and shardings: one code path from one device to many.

The batch is split over the mesh axis ``data``. Parameters and optimiser state are replicated, or, with
``shard_parameters``, split over the same axis (fully sharded data parallelism): XLA gathers them where they are used.
"""

from typing import TypedDict

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxai.typing import PyTree

SMALLEST_SHARDED = 2**12  # elements; below, a gather costs more than the memory it saves


def make_mesh(devices: int = 0, *, batch_size: int = 0) -> Mesh:
    """A mesh of the first ``devices`` devices (0: all) with one axis ``data``.

    Raises ValueError where a global batch of ``batch_size`` does not divide over them.
    """
    found = jax.devices()[: devices or None]
    if batch_size % len(found):
        raise ValueError(f"--batch-size {batch_size} does not divide over {len(found)} devices: change one of them")
    return jax.make_mesh((len(found),), ("data",), axis_types=(AxisType.Auto,), devices=found)


class Processes(TypedDict):
    """One of several processes."""

    process_index: int
    process_count: int


def processes() -> Processes:
    """Which of how many processes this one is, by the names that `jaxai.data.pipeline.batches` takes."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The axis of the batch split over the mesh: the leading one, or 1 in a stack of batches."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def state_sharding(state: PyTree, mesh: Mesh, *, shard_parameters: bool = False) -> PyTree:
    """A sharding for every leaf of a state (arrays or shapes).

    With ``shard_parameters`` each leaf of at least 4,096 elements is split along its largest axis that divides by the
    mesh; every other leaf is replicated.
    """

    def leaf_sharding(leaf: jax.ShapeDtypeStruct | jax.Array) -> NamedSharding:
        spec = partition(leaf.shape, mesh.size) if shard_parameters else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree.map(leaf_sharding, state)


def partition(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """Split the largest axis that divides into ``parts``; replicate small leaves and those without such an axis."""
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if not axes or np.prod(shape) < SMALLEST_SHARDED:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(["data" if axis == largest else None for axis in range(len(shape))]))


def put_batch(batch: PyTree, sharding: NamedSharding) -> PyTree:
    """This process's rows of a global batch (numpy) as global arrays on the mesh."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
