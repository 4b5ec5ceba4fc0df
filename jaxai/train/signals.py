"""SIGTERM and SIGINT while a run trains: the first saves and ends it, the second ends it at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxai.command import Interrupted
from jaxai.typing import Array

HANDLED = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Whether to stop, as a context; ``received`` is the first signal's number, or 0.

    After the first signal both have the system's own effect again, which is to end the process. Does nothing outside
    the main thread, where Python handles no signals.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.received, self._raises = 0, False
        self._said: Array | None = None
        devices = np.asarray(mesh.devices).reshape(-1)
        self._flat = Mesh(devices, ("device",))
        whole = NamedSharding(self._flat, PartitionSpec())
        self._greatest = jax.jit(lambda flags: flags.max(), out_shardings=whole)

    def __enter__(self) -> "Signals":
        here = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._receive) for number in HANDLED} if here else {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for each in HANDLED:
            signal.signal(each, signal.SIG_DFL)
        if self._raises:
            raise Interrupted(number)

    def stop(self) -> int:
        """The signal on which to stop, or 0. All processes call this as often and get the same answer.

        With several processes it is the one that any of them had received at the call before: the devices tell each
        other while they work, and no host waits for them.
        """
        if jax.process_count() == 1:
            return self.received
        before = self._said
        local = np.full(len(self._flat.local_devices), self.received, np.int32)
        flags = jax.make_array_from_process_local_data(NamedSharding(self._flat, PartitionSpec("device")), local)
        self._said = self._greatest(flags)
        return int(before) if before is not None else 0

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Where a signal, also one received before, raises Interrupted; not with several processes."""
        if jax.process_count() > 1:
            yield
            return
        if self.received:
            raise Interrupted(self.received)
        self._raises = True
        try:
            yield
        finally:
            self._raises = False
