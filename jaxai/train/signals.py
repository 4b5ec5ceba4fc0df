"""SIGTERM and SIGINT during training: the first saves and stops the run, the second ends the process at once."""

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
    """A context that handles SIGTERM and SIGINT; ``received`` is the number of the signal received, or 0.

    A thread reads the wakeup pipe to which Python writes each signal's number, so that the second signal ends the
    process even while the main thread compiles or waits. Does nothing outside the main thread, where Python handles no
    signals.
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
        """The signal on which to stop, or 0, and whether to save now; ``save`` requests a checkpoint.

        With several processes all must call this equally often, and all get the same answer: the signal that any of
        them had received by the previous call, and the ``save`` that process 0 passed then. The exchange runs on the
        devices between steps, so that no host waits for it.
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
        """A context in which a signal, even an earlier one, raises Interrupted; no effect with several processes."""
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
    """Read signal numbers (bytes) from the pipe until it is closed; end the process at the second handled one."""
    received = 0
    with os.fdopen(reader, "rb", buffering=0) as signals:
        while number := signals.read(1):
            received += number[0] in HANDLED
            if received == 2:
                os._exit(128 + number[0])
