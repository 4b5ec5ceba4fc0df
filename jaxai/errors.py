"""Exceptions that end a command with one line for its user, and their exit codes."""

import errno
import signal


class UserError(ValueError):
    """A mistake of the user: its message names the argument or file, and the fix."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""


class ExistingFileError(UserError, FileExistsError):
    """A file or folder that is in the way."""


class DamagedFileError(UserError, OSError):
    """A file whose content can't be used."""


class Stopped(Exception):
    """Training that must not go on; the message is for users."""


class Rollback(Exception):
    """Roll back to the last good checkpoint and resume with a new key.

    Raised by monitors while training runs. The message gives the reason, ``last_good_step`` the last step before it.
    """

    def __init__(self, message: str, last_good_step: int) -> None:
        super().__init__(message)
        self.last_good_step = last_good_step


class Interrupted(BaseException):
    """A signal that ended the training after a checkpoint; not an Exception, so that no library catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the disk, not of the program, wherever they are raised."""


def ending(error: BaseException, interrupted: str) -> tuple[int, str] | None:
    """The exit code of an error and the line for the user; None for bugs, which keep their traceback.

    2 for a mistake of the user, 1 for training that must not go on and full disks, 128 + n for signal n.
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
