"""Shared by the GPU benchmark's sections: their rows, time limit and PyTorch process. Imports no JAX."""

import contextlib
import dataclasses
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxai import errors

MET, MISSED, FAILED, NOT_RUN, MEASURED = "within", "outside", "failed", "not run", "measured"
STATUSES = (FAILED, MISSED, MET, NOT_RUN, MEASURED)
"""In the table's order: within or outside the bound; "measured" is a value without a bound."""
PEERS = Path(__file__).parent.parent / "peers"
REPOSITORY = PEERS.parent.parent
Wanted = tuple[Literal["<=", ">="], float]


@dataclasses.dataclass(frozen=True)
class Session:
    """A section with its options and time limit; the clock starts at construction."""

    section: str
    seconds: float
    """The time limit."""
    out: Path
    dry: bool
    """Small sizes on a CPU, where times are meaningless."""
    peers: Path | None
    """An interpreter that has PyTorch."""
    data_dir: Path | None
    started: str
    """When the command was started, in ISO format."""
    device: str
    versions: dict[str, str]
    begun: float = dataclasses.field(default_factory=time.monotonic)

    def to_json(self) -> str:
        """Serialize the session for another process."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name != "begun"}
        return json.dumps(values, default=str)

    @classmethod
    def from_json(cls, text: str) -> "Session":
        """Restore a session from `to_json`; its clock starts now."""
        values = json.loads(text)
        paths = {name: values[name] and Path(values[name]) for name in ("out", "peers", "data_dir")}
        return cls(**values | paths)

    @property
    def left(self) -> float:
        """Remaining seconds."""
        return self.begun + self.seconds - time.monotonic()

    @property
    def timing(self) -> dict[str, Any]:
        """Arguments of `timing.race`: queueing calls for a twentieth of a second hides the launch overhead."""
        return {"rounds": 1, "turn_seconds": 0.0} if self.dry else {"rounds": 5, "turn_seconds": 0.05}

    def row(
        self,
        what: str,
        value: float | str | None = None,
        unit: str = "",
        *,
        wanted: Wanted | None = None,
        status: str = "",
        detail: str = "",
        values: Sequence[float] = (),
    ) -> None:
        """Append a measurement to results.jsonl, flushed to disk, and print it.

        ``values`` are those of several rounds; their median is the value. The status follows from the bound ``wanted``;
        a dry run compares nothing with bounds, as its sizes and times are not the real ones.
        """
        if values:
            value = statistics.median(values)
        if not status:
            status = MEASURED
            if wanted and not self.dry and isinstance(value, int | float):
                status = MET if within(value, wanted) else MISSED
        row = {
            "section": self.section,
            "what": what,
            "value": digits(value) if isinstance(value, float) else value,
            "unit": unit,
            "wanted": f"{wanted[0]} {wanted[1]:.4g}" if wanted else "",
            "status": status,
            "detail": detail,
            "spread": {"min": digits(min(values)), "median": digits(value), "max": digits(max(values))}
            if values
            else None,
            "device": self.device,
            "versions": self.versions,
            "started": self.started,
            "dry": self.dry,
        }
        append(self.out / "results.jsonl", row)
        print(f"{status:8} {what}: {row['value']} {unit} {row['wanted']} {detail}"[:200].rstrip(), flush=True)

    def verified(self, what: str, error: float, bound: float, detail: str = "") -> bool:
        """Return whether an error is within its bound; append a failed row if it is larger or NaN."""
        if error <= bound:
            return True
        self.row(what, error, wanted=("<=", bound), status=FAILED, detail=detail or "wrong numbers, not timed")
        return False

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Turn an exception into a row: not run for NotAvailable, else failed."""
        try:
            yield
        except Exception as error:
            from timing import NotAvailable  # not at the top: the driver has no JAX

            traceback.print_exc()
            if isinstance(error, NotAvailable):
                self.row(what, status=NOT_RUN, detail=one_line(error))
            else:
                self.row(what, status=FAILED, detail=f"{type(error).__name__}: {one_line(error)}")

    def enough(self, seconds: float, what: str) -> bool:
        """Return whether this much time is left; if not, append a row with status not run."""
        if self.left > seconds or self.dry:
            return True
        self.row(what, status=NOT_RUN, detail=f"{self.left:.0f} s of {self.seconds:.0f} are left")
        return False

    @contextlib.contextmanager
    def peer(self, script: str, *options: str) -> Iterator[Callable[..., dict[str, Any]] | None]:
        """Start PyTorch's process and yield a function that queries it; append a row and yield None without it."""
        from timing import NotAvailable, peer_process

        if self.peers is None:
            reason = "no interpreter with PyTorch: give --peers PYTHON"
            self.row("against PyTorch", status=NOT_RUN, detail=reason)
            yield None
            return
        device = ("--threads", "1") if self.dry else ("--device", "cuda", "--threads", str(os.cpu_count()))
        # Closing the pipe to a process that has already ended raises BrokenPipeError.
        with contextlib.suppress(BrokenPipeError), contextlib.ExitStack() as stack:
            try:
                process = stack.enter_context(peer_process(self.peers, PEERS / script, *options, *device))
            except ValueError as error:
                self.row("against PyTorch", status=NOT_RUN, detail=str(error))
                yield None
                return
            assert process

            def ask(**request: Any) -> dict[str, Any]:
                try:
                    return process(**request)
                except (ValueError, BrokenPipeError) as error:
                    raise NotAvailable(f"PyTorch's process ended, see {self.section}.log ({error})") from error

            yield ask


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON and flush it to disk."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def one_line(error: BaseException) -> str:
    """The beginning of an error's message, on one line."""
    return errors.one_line(error)[:300]


def digits(value: Any) -> float:
    """Round to four significant digits."""
    return float(f"{float(value):.4g}")


def within(value: float, wanted: Wanted) -> bool:
    """Return whether a value is within its bound; False for NaN."""
    return value <= wanted[1] if wanted[0] == "<=" else value >= wanted[1]
