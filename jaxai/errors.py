"""Exceptions that end a command with a one-line message for the user, and their exit codes."""

import errno
import signal


class UserError(ValueError):
    """A user error; the message names the argument or file, and the fix."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""


class ExistingFileError(UserError, FileExistsError):
    """A file or folder that already exists."""


class DamagedFileError(UserError, OSError):
    """A file whose content can't be used."""


class Stopped(Exception):
    """Training that can't continue; the message is for the user."""


class Rollback(Exception):
    """Roll back to the last good checkpoint and resume with a new key.

    Raised by monitors while training runs. The message gives the reason, ``last_good_step`` the last step before it.
    """

    def __init__(self, message: str, last_good_step: int) -> None:
        super().__init__(message)
        self.last_good_step = last_good_step


class Interrupted(BaseException):
    """A signal that stops the training; not an Exception, so that no library catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Error numbers of a full or read-only disk, reported in one line wherever they are raised."""


def ending(error: BaseException, interrupted: str) -> tuple[int, str] | None:
    """The exit code of an error and the message for the user; None for bugs, which keep their traceback.

    2 for user errors, 1 for training that can't continue and full disks, 128 + n for signal n.
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
        case OSError(errno=number) if number in DISK_ERRORS:
            return 1, f"stopped: {error.filename or 'a file'} can't be written ({error.strerror})"
        case UserError() | PermissionError():
            return 2, f"error: {one_line(error)}"
    return None


def one_line(error: BaseException) -> str:
    """The message of an error, on one line."""
    return " ".join(str(error).split())
