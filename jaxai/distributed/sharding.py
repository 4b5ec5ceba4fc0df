"""Shardings of batches and training states: one code path for one device and many.

The batch is split over the mesh axis ``data``. Parameters and optimiser state are replicated, or split over the axis
``model`` if it has more than one device and, with ``shard_parameters``, over ``data`` too (fully sharded data
parallelism, FSDP): XLA gathers them where they are used.
"""

import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxai.typing import PyTree

logger = logging.getLogger(__name__)


SMALLEST_SHARDED = 2**12  # elements; below, a gather costs more than the memory it saves


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of a batch whose examples lie along ``axis``: 0, or 1 in a stack of batches."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def state_sharding(state: PyTree, mesh: Mesh, *, shard_parameters: bool = False) -> PyTree:
    """A sharding for every leaf of a state (arrays or shapes).

    Each leaf of at least 4,096 elements is split over ``model`` along its largest axis divisible by that size and, with
    ``shard_parameters``, over ``data`` along its largest other divisible axis; all else is replicated. How much is
    split is logged. ``state.carry``, passed from batch to batch, is split along its leading axis as batches are.
    """
    names = [name for name in ("model", *["data"] * shard_parameters) if mesh.shape[name] > 1]
    parts = {name: mesh.shape[name] for name in names}

    def choose(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        if path and path[0] == jax.tree_util.GetAttrKey("carry"):
            return PartitionSpec("data") if leaf.ndim and leaf.shape[0] % mesh.shape["data"] == 0 else PartitionSpec()
        return partition(leaf.shape, parts)

    specs = jax.tree_util.tree_map_with_path(choose, state)
    if parts:
        log_choices(state, specs, parts)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)


def partition(shape: tuple[int, ...], parts: dict[str, int]) -> PartitionSpec:
    """For each mesh axis, split the largest unsplit axis divisible by its size; replicate small leaves."""
    chosen: dict[int, str] = {}
    for name, count in parts.items() if np.prod(shape) >= SMALLEST_SHARDED else ():
        if axes := [axis for axis, size in enumerate(shape) if size % count == 0 and axis not in chosen]:
            chosen[max(axes, key=lambda axis: shape[axis])] = name
    return PartitionSpec(*(chosen.get(axis) for axis in range(max(chosen) + 1 if chosen else 0)))


def gather_params(params: PyTree) -> PyTree:
    """Gather parameters that are split over ``data`` for use in a step; no change without a mesh.

    Otherwise XLA splits single matrix products over the devices: a Transformer's step then communicates 18 times as
    many bytes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or "data" not in mesh.shape:
        return params
    parts = {"model": mesh.shape["model"]} if mesh.shape.get("model", 1) > 1 else {}
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, partition(x.shape, parts)), params)


def log_choices(state: PyTree, specs: PyTree, parts: dict[str, int]) -> None:
    """Log how much of a state is split, and its largest replicated array."""
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(state)]
    leaves = list(zip(names, jax.tree.leaves(state), jax.tree.leaves(specs, is_leaf=is_spec), strict=True))
    split = [leaf for _, leaf, spec in leaves if any(spec)]
    whole = max(((leaf.size, name) for name, leaf, spec in leaves if not any(spec)), default=(0, "none"))
    logger.info(
        "%d of %d arrays, with %d of %d elements, are split over %s; the largest that is not: %s, %d",
        *(len(split), len(leaves), sum(leaf.size for leaf in split), sum(leaf.size for _, leaf, _ in leaves)),
        *(", ".join(f"{name}={count}" for name, count in parts.items()), whole[1], whole[0]),
    )


def is_spec(value: Any) -> bool:
    """Whether a value is a PartitionSpec: as a tuple it would not count as a leaf of a tree."""
    return isinstance(value, PartitionSpec)


def put_batch(batch: PyTree, sharding: NamedSharding) -> PyTree:
    """Make global arrays on the mesh from this process's rows of a batch (numpy)."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
