"""One of several processes: the first, all at one place, and what each needs by itself."""

import contextlib
import faulthandler
import itertools
import re
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxai.errors import Stopped
from jaxai.typing import PyTree

BARRIER_SECONDS = 600  # a process that is not at a barrier by then is missing

_numbers = itertools.count()  # a barrier's name must be new; all processes pass the same ones


def first_process() -> bool:
    """Whether this process is the one that handles what all share."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all processes. Raises Stopped, naming those that are missing after ten minutes."""
    if (count := jax.process_count()) == 1:
        return
    try:
        name = f"{name}, {next(_numbers)}"
        ocp.multihost.sync_global_processes(name, timeout=BARRIER_SECONDS, processes=set(range(count)))
    except jax.errors.JaxRuntimeError as error:
        missing = re.search(r"timed out task names:\s*((?:\d+\s*)+)", str(error))
        if not missing:
            raise
        who = ", ".join(missing[1].split())
        message = f"not all processes came to '{name}' within {BARRIER_SECONDS} s, missing: {who}; see what they said"
        raise Stopped(message) from error


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Where the block takes longer, print where every thread stands and end the process with exit code 1; 0: wait."""
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def local_mesh(mesh: Mesh) -> Mesh:
    """Where this process computes by itself: the mesh, or its first device where there are several processes."""
    if jax.process_count() == 1:
        return mesh
    devices = np.asarray(jax.local_devices()[:1]).reshape([1] * len(mesh.axis_names))
    return Mesh(devices, mesh.axis_names, axis_types=(AxisType.Auto,) * devices.ndim)


def local(state: PyTree, mesh: Mesh) -> PyTree:
    """A state as this process alone needs it: gathered from all to its first device, where there are several."""
    if jax.process_count() == 1:
        return state
    whole = jax.jit(lambda state: state, out_shardings=NamedSharding(mesh, PartitionSpec()))(state)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
