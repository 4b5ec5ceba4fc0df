"""Multi-process sessions: joining a cluster, leaving it, and handling failures."""

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

HEARTBEAT, JOIN = 15, 120  # seconds after which a silent process counts as lost; within which all must join


@contextlib.contextmanager
def distributed_session(coordinator: str, count: int, index: int) -> Iterator[None]:
    """Join a multi-process session if there is a ``coordinator``. Enter this context before using any device.

    A process that fails on its own prints the error and exits at once; the others notice within HEARTBEAT seconds. At
    the end all processes wait for each other. Raises ValueError if the others don't join, or ``auto`` finds no cluster.
    """
    if not coordinator:
        yield
        return
    jax.config.update("jax_enable_preemption_service", False)  # signals are handled by the loop
    options: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT, "initialization_timeout": JOIN}
    options["shutdown_timeout_seconds"] = 24 * 3600  # others may still be evaluating
    if coordinator != "auto":
        host = coordinator.rpartition(":")[0].strip("[]")
        os.environ.update({"no_grpc_proxy": host})  # otherwise joining hangs behind a proxy
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
        raise  # raised by all processes at the same step
    except BaseException as error:
        if (end := errors.ending(error, "interrupted")) is None:
            traceback.print_exc()
        code, told = end or (1, "stopped: this process failed, or lost another")
        print(f"{told} (process {jax.process_index()})", file=sys.stderr, flush=True)
        if jax.process_index() == 0:
            time.sleep(2)  # once the coordinator is gone, other processes can't report their errors
        os._exit(code)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
