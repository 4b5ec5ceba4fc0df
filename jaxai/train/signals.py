"""SIGTERM and SIGINT while a run trains: the first saves and ends it, the second ends it at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxai.distributed.processes import first_process
from jaxai.errors import Interrupted
from jaxai.typing import Array

HANDLED = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Whether to stop, as a context; ``received`` is the first signal's number, or 0.

    A thread reads what Python's own handler writes for each signal, so that the second one ends the process also while
    the main thread compiles or waits. Does nothing outside the main thread, where Python handles no signals.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.received, self._raises = 0, False
        self._agreed: Array | None = None
        devices = np.asarray(mesh.devices).reshape(-1)
        self._flat = Mesh(devices, ("device",))
        whole = NamedSharding(self._flat, PartitionSpec())
        self._greatest = jax.jit(lambda flags: flags.max(0), out_shardings=whole)

    def __enter__(self) -> "Signals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            threading.Thread(target=end_at_second, args=[reader], daemon=True).start()
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._receive) for number in HANDLED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._writer)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        if self._raises:
            raise Interrupted(number)

    def stop(self, save: bool = False) -> tuple[int, bool]:
        """The signal on which to stop, or 0, and whether to save now, for which ``save`` asks.

        All of several processes call this equally often and get the same answer: the signal that any of them had
        received at the call before, and what the first asked for then. The devices exchange both while they work, and
        no host waits for them.
        """
        if jax.process_count() == 1:
            return self.received, save
        before = self._agreed
        own = [self.received, save and first_process()]
        local = np.tile(np.array(own, np.int32), (len(self._flat.local_devices), 1))
        flags = jax.make_array_from_process_local_data(NamedSharding(self._flat, PartitionSpec("device")), local)
        self._agreed = self._greatest(flags)
        if before is None:
            return 0, False
        number, saves = np.asarray(before).tolist()
        return number, bool(saves)

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


def end_at_second(reader: int) -> None:
    """End the process at the second of the handled signals, whose numbers come as bytes, until the pipe is closed."""
    received = 0
    with os.fdopen(reader, "rb", buffering=0) as signals:
        while number := signals.read(1):
            received += number[0] in HANDLED
            if received == 2:
                os._exit(128 + number[0])
