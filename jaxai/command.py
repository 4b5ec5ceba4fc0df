"""What every command shares, without JAX: reading the command line, one line for a user's error, exit codes."""

import contextlib
import errno
import io
import itertools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro


class Stopped(Exception):
    """Training that must not go on; its message is for users."""


class Interrupted(BaseException):
    """A signal ended the training after what there is was saved; no library's ``except Exception`` may keep it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the disk, not of the program, wherever they are raised."""


def read(form: Any, arguments: Sequence[str], **options: Any) -> Any:
    """An instance of a dataclass (or of one of a union of them) from the command line, by tyro with these options.

    Raises ValueError, in one line, for unknown options and bad values; ``--help`` prints and exits.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(form, args=list(arguments), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise ValueError(usage_error(said.getvalue()))


def usage_error(box: str) -> str:
    """The message in the box that tyro draws: what stands above its first rule."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    message = itertools.takewhile(lambda line: line.strip("─╰╯"), lines)
    return f"{' '.join(message) or ' '.join(box.split())} (see --help)"


def guard(command: Callable[[], None], *, interrupted: str = "interrupted") -> None:
    """Run a command. What it raises is a line on standard error and an exit code, but for bugs: those stay as they are.

    A reader of the output that has gone, such as ``head``, ends the command without a word.
    """
    try:
        command()
        sys.stdout.flush()
    except BaseException as error:
        if (end := ending(error, interrupted)) is None:
            raise
        code, said = end
        if said:
            print(said, file=sys.stderr)
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at the end fails as well
        sys.exit(code)


def ending(error: BaseException, interrupted: str) -> tuple[int, str] | None:
    """The exit code of an error and what to tell the user, on one line; None for bugs.

    2 for a user's error, 1 for training that must not go on and full disks, 130, 143 for signals.
    """
    match error:
        case Stopped() | FloatingPointError():
            return 1, f"stopped: {one_line(error)}"
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, interrupted
        case Interrupted():
            return 128 + error.number, f"{interrupted} ({error})"
        case BrokenPipeError():
            return 128 + signal.SIGPIPE, ""
        case OSError(errno=number) if number in FULL:
            return 1, f"stopped: {error.filename or 'a file'} can't be written ({error.strerror})"
        case PermissionError():
            return 2, f"error: {one_line(error)}"
        case ValueError() | OSError() if from_our_code(error):
            return 2, f"error: {one_line(error)}"
    return None


def show_messages() -> None:
    """Print what the project logs, plainly, on standard error."""
    project = logging.getLogger("jaxai")
    project.setLevel(logging.INFO)
    project.addHandler(logging.StreamHandler())
    project.propagate = False


def from_our_code(error: BaseException) -> bool:
    """Whether a message is for users: raised by this project's own lines, not inside a library (then it is a bug)."""
    frames = list(traceback.walk_tb(error.__traceback__))
    raised_in = Path(frames[-1][0].f_code.co_filename).resolve()
    package = Path(__file__).resolve().parent
    commands = [package.parent / name for name in ("experiments", "benchmarks")]
    return any(raised_in.is_relative_to(folder) for folder in [package, *commands])


def one_line(error: BaseException) -> str:
    """The message of an error, on one line."""
    return " ".join(str(error).split())
