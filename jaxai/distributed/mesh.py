"""Device meshes, and the rows of a batch that each process reads."""

from typing import TypedDict

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxai.config import mesh_axes
from jaxai.errors import UserError


def make_mesh(devices: int = 0, *, batch_size: int = 0, shape: str = "", batch_option: str = "--batch-size") -> Mesh:
    """A mesh with the axes ``data`` and ``model`` over the first ``devices`` devices (0, or several processes: all).

    ``shape`` is ``data=4,model=2`` or, for all devices on ``data``, empty. Raises ValueError where it is not of as many
    devices as there are, and where a global batch of ``batch_size``, set by ``batch_option``, does not divide over
    ``data``.
    """
    axes = mesh_axes(shape)
    wanted = int(np.prod(list(axes.values()))) if axes else devices
    several = jax.process_count() > 1
    if several and devices not in (0, jax.local_device_count()):
        raise UserError(
            f"--devices {devices}: each of several processes uses all its {jax.local_device_count()} devices"
        )
    found = jax.devices()[: None if several else (wanted or None)]
    if axes and wanted != len(found):
        raise UserError(f"--mesh {shape} is of {wanted} devices, but there are {len(found)}: change it, or --devices")
    sizes = axes or {"data": len(found), "model": 1}
    if batch_size % sizes["data"]:
        raise UserError(f"{batch_option} {batch_size} does not divide over {sizes['data']} devices: change one of them")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2, devices=found)


def data_axis_size() -> int:
    """The size of the axis ``data`` of the mesh that `jax.set_mesh` has set."""
    return jax.sharding.get_abstract_mesh().shape["data"]


class Processes(TypedDict):
    """One of several processes."""

    process_index: int
    process_count: int


def processes(mesh: Mesh) -> Processes:
    """Which of how many parts of a batch this process reads, by the names that `jaxai.data.pipeline.batches` takes.

    As many as there are processes, unless the axis ``model`` goes across processes, which then read the same rows.
    Raises ValueError where a process would read rows that are not next to each other.
    """
    rows = sorted({index[0] for index, device in np.ndenumerate(mesh.devices) if device in mesh.local_devices})
    if rows != list(range(rows[0], rows[0] + len(rows))) or mesh.shape["data"] % len(rows) or rows[0] % len(rows):
        raise UserError(f"the mesh {dict(mesh.shape)} does not divide over the processes: give --mesh a multiple")
    return {"process_index": rows[0] // len(rows), "process_count": mesh.shape["data"] // len(rows)}


def on_accelerator(mesh: Mesh) -> bool:
    """Whether the devices of a mesh have a memory of their own and work beside the host: they are no CPUs."""
    return mesh.devices.flat[0].platform != "cpu"
