"""Exceptions that end a command with one line for its user, and their exit codes."""

import errno
import signal
import traceback
from pathlib import Path


class Stopped(Exception):
    """Training that must not go on; its message is for users."""


class Interrupted(BaseException):
    """A signal ended the training after what there is was saved; no library's ``except Exception`` may keep it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the disk, not of the program, wherever they are raised."""


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


class Rollback(Exception):
    """Roll back to the last good checkpoint and resume with a new key.

    Raised by monitors while training runs. The message gives the reason, ``last_good_step`` the last step before it.
    """

    def __init__(self, message: str, last_good_step: int) -> None:
        super().__init__(message)
        self.last_good_step = last_good_step
