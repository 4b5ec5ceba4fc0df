"""Device meshes, and the part of a batch that each process reads."""

from typing import TypedDict

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxai.config import mesh_axes
from jaxai.errors import UserError


def make_mesh(devices: int = 0, *, batch_size: int = 0, shape: str = "", batch_option: str = "--batch-size") -> Mesh:
    """A mesh with the axes ``data`` and ``model`` over the first ``devices`` devices (0, or several processes: all).

    ``shape`` is like ``data=4,model=2``, or empty for all devices on ``data``. Raises ValueError if it doesn't match
    the number of devices, or if the global ``batch_size``, set by the option ``batch_option``, is not divisible by the
    size of ``data``.
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
        raise UserError(f"--mesh {shape} needs {wanted} devices, but there are {len(found)}: change it, or --devices")
    sizes = axes or {"data": len(found), "model": 1}
    if batch_size % sizes["data"]:
        raise UserError(f"{batch_option} {batch_size} does not divide over {sizes['data']} devices: change one of them")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2, devices=found)


def data_axis_size() -> int:
    """The size of the axis ``data`` of the current mesh (`jax.set_mesh`)."""
    return jax.sharding.get_abstract_mesh().shape["data"]


class Processes(TypedDict):
    """The index of a process and the number of processes."""

    process_index: int
    process_count: int


def processes(mesh: Mesh) -> Processes:
    """The index of the part of a batch that this process reads, and the number of parts.

    The names are those of the arguments of `jaxai.data.pipeline.batches`. There is one part per process, unless the
    axis ``model`` spans several processes, which then read the same rows. Raises ValueError if the rows of a process
    would not be contiguous.
    """
    rows = sorted({index[0] for index, device in np.ndenumerate(mesh.devices) if device in mesh.local_devices})
    if rows != list(range(rows[0], rows[0] + len(rows))) or mesh.shape["data"] % len(rows) or rows[0] % len(rows):
        raise UserError(f"the mesh {dict(mesh.shape)} does not divide over the processes: give --mesh a multiple")
    return {"process_index": rows[0] // len(rows), "process_count": mesh.shape["data"] // len(rows)}


def on_accelerator(mesh: Mesh) -> bool:
    """Whether the devices of a mesh are accelerators: with memory of their own, computing in parallel to the host."""
    return mesh.devices.flat[0].platform != "cpu"
