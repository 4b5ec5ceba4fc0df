"""Errors of users, of runs and of disks: their types, exit codes and single lines."""

import errno
import signal

import pytest

from jaxai import errors
from jaxai.errors import DamagedFileError, Interrupted, MissingFileError, Rollback, Stopped, UserError, ending


@pytest.mark.parametrize(
    ("kind", "caught_as"),
    [
        (UserError, (ValueError,)),
        (MissingFileError, (UserError, ValueError, FileNotFoundError)),
        (DamagedFileError, (UserError, ValueError, OSError)),
    ],
)
def test_mistakes_of_users_are_also_the_builtin_errors(kind, caught_as):
    error = kind("give another file")
    assert all(isinstance(error, other) for other in caught_as)
    assert str(error) == "give another file"


DISK = OSError(errno.ENOSPC, "No space left on device", "/runs/a")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--steps must be\n at least 1"), 2, "error: --steps must be at least 1"),
        (MissingFileError("a.png is missing"), 2, "error: a.png is missing"),
        (DamagedFileError("a.png is damaged"), 2, "error: a.png is damaged"),
        (Stopped("the generator has collapsed"), 1, "stopped: the generator has collapsed"),
        (FloatingPointError("loss is nan"), 1, "stopped: loss is nan"),
        (DISK, 1, "stopped: /runs/a can't be written (No space left on device)"),
        (OSError(errno.EROFS, "Read-only file system"), 1, "stopped: a file can't be written (Read-only file system)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted(signal.SIGTERM), 143, "interrupted (SIGTERM)"),
        (Interrupted(signal.SIGINT), 130, "interrupted (SIGINT)"),
        (BrokenPipeError(), 141, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_ends_a_command(error, code, line):
    assert ending(error, "interrupted") == (code, line)


def test_permissions_are_mistakes_of_users():
    code, line = ending(PermissionError(errno.EACCES, "Permission denied", "/root/a"), "")
    assert code == 2
    assert "/root/a" in line


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), TypeError("x"), OSError("x"), FileNotFoundError("x"), RuntimeError("x"), Rollback("x", 3)],
)
def test_bugs_keep_their_traceback(error):
    assert ending(error, "interrupted") is None


def test_an_interruption_is_no_exception_that_a_library_would_catch():
    assert not issubclass(Interrupted, Exception)
    assert Interrupted(signal.SIGTERM).number == signal.SIGTERM


def test_a_rollback_knows_its_last_good_step():
    rollback = Rollback("step 9: collapsed", 5)
    assert (str(rollback), rollback.last_good_step) == ("step 9: collapsed", 5)


def test_one_line_has_no_breaks():
    assert errors.one_line(ValueError("a\n  b\tc")) == "a b c"
