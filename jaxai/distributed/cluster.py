"""A session of several processes: joining a cluster, leaving it, failing in it."""

import contextlib
import ipaddress
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from jaxai import errors
from jaxai.errors import UserError

HEARTBEAT, JOIN = 15, 120  # seconds until a silent process is lost; until all must have come


@contextlib.contextmanager
def distributed_session(coordinator: str, count: int, index: int) -> Iterator[None]:
    """Be one of several processes, where there is a coordinator. Enter before anything touches a device.

    A process that fails in a way that the others may not share says so and ends at once; they notice within HEARTBEAT
    seconds. At the end each waits for all. Raises ValueError where the others don't come, or ``auto`` finds no cluster.
    """
    if not coordinator:
        yield
        return
    jax.config.update("jax_enable_preemption_service", False)  # signals are handled by the loop
    options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT, "initialization_timeout": JOIN}
    options["shutdown_timeout_seconds"] = 24 * 3600  # others may still draw and score
    if coordinator != "auto":
        host = coordinator.rpartition(":")[0].strip("[]")
        os.environ.update({"no_grpc_proxy": host})  # else joining hangs where there is a proxy
        jax.config.update("jax_check_proxy_envs", False)
        options |= {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
        options |= {"cluster_detection_method": "deactivate"}
        if is_loopback(host):
            options["coordinator_bind_address"] = coordinator
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--coordinator {coordinator}: {errors.one_line(error)}") from error
    try:
        yield
    except (errors.Interrupted, FloatingPointError):
        raise  # all processes come to these at the same step
    except BaseException as error:
        if (end := errors.ending(error, "interrupted")) is None:
            traceback.print_exc()
        code, told = end or (1, "stopped: this process failed, or lost another")
        print(f"{told} (process {jax.process_index()})", file=sys.stderr, flush=True)
        if jax.process_index() == 0:
            time.sleep(2)  # without its coordinator another process can't tell what it has to
        os._exit(code)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
