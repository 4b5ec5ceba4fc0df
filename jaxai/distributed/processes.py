"""Helpers for several processes: which one is first, barriers, a watchdog, and process-local states."""

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

BARRIER_SECONDS = 600  # timeout after which a process counts as missing

_numbers = itertools.count()  # makes the name of each barrier unique; all processes pass the same barriers


def first_process() -> bool:
    """Whether this is process 0, which handles shared files and messages."""
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
        message = f"not all processes reached '{name}' within {BARRIER_SECONDS} s, missing: {who}; see their output"
        raise Stopped(message) from error


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """If the block takes longer, dump the traceback of every thread and exit with code 1; 0 disables the watchdog."""
    if not seconds:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def local_mesh(mesh: Mesh) -> Mesh:
    """A mesh for computations of this process alone: ``mesh``, or its first local device with several processes."""
    if jax.process_count() == 1:
        return mesh
    devices = np.asarray(jax.local_devices()[:1]).reshape([1] * len(mesh.axis_names))
    return Mesh(devices, mesh.axis_names, axis_types=(AxisType.Auto,) * devices.ndim)


def local(state: PyTree, mesh: Mesh) -> PyTree:
    """The whole state on this process: with several processes, gathered to its first device; otherwise unchanged."""
    if jax.process_count() == 1:
        return state
    whole = jax.jit(lambda state: state, out_shardings=NamedSharding(mesh, PartitionSpec()))(state)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
