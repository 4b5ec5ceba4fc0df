"""A Python process that has imported what every experiment needs, and forks for each command.

Importing JAX, Flax and the rest takes some three seconds, which most commands of the tests would spend in vain. JAX's
devices are started by the fork, so each command has its own. One request is a line of JSON on standard input: the
arguments, the folder, the environment, and the files for standard output, standard error and the exit code; the answer
is a line with the fork's process ID.
"""

import atexit
import contextlib
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parent.parent.parent
LIBRARIES = ("jaxai.experiment", "jaxai.gan", "jaxai.metrics", "jaxai.nn", "jaxai.plots", "matplotlib.pyplot", "tyro")


class Job:
    """``[script, *arguments]`` in a fork of the server, with those methods of `subprocess.Popen` that tests use."""

    def __init__(self, args: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
        process, codes, numbers = server()
        assert process.stdin
        assert process.stdout
        self.args, self.returncode, self.code = args, None, Path(codes.name) / str(next(numbers))
        request = {"line": args, "folder": str(folder), "environment": environment}
        request |= {"out": str(out), "err": str(err), "code": str(self.code)}
        print(json.dumps(request), file=process.stdin, flush=True)
        self.pid = int(process.stdout.readline())

    def poll(self) -> int | None:
        """The exit code, or None while the fork runs."""
        if self.returncode is None and self.code.exists():
            self.returncode = int(self.code.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, as soon as there is one.

        Raises:
            subprocess.TimeoutExpired: there is none after ``timeout`` seconds.
        """
        limit = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if timeout and time.monotonic() > limit:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended since
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(args: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``[script, *arguments]`` in a fork of the server, as `subprocess.run` does with captured text."""
    with tempfile.TemporaryDirectory() as said:
        out, err = Path(said) / "out", Path(said) / "err"
        code = Job(args, folder, environment, out, err).wait()
        return subprocess.CompletedProcess(args, code, out.read_text(), err.read_text())


@cache
def server() -> tuple[subprocess.Popen[str], tempfile.TemporaryDirectory, itertools.count]:
    """The server of this test process, a folder for exit codes, and their file names."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(REPOSITORY / ".jax_cache")  # JAX reads these when it is imported
    line = [sys.executable, "-m", "tests.experiments.warm"]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    atexit.register(stop, process)
    return process, tempfile.TemporaryDirectory(), itertools.count()


def stop(process: subprocess.Popen[str]) -> None:
    """End the server by the end of its standard input."""
    process.communicate()


def serve() -> dict | None:
    """Fork for each request. In the fork, return the request; in the server, None when standard input ends.

    Between them stands a process that waits for the fork and writes its exit code.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    for text in sys.stdin:
        request = json.loads(text)
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        files = [os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err")]
        child = os.fork()
        if not child:
            for number, file in enumerate(files, 1):
                os.dup2(file, number)
                os.close(file)
            return request
        os.write(1, f"{child}\n".encode())
        code = Path(request["code"])
        code.with_suffix(".tmp").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        code.with_suffix(".tmp").rename(code)
        os._exit(0)
    return None


def become(request: dict) -> None:
    """Turn this fork into the process of a script: its folder, environment, arguments and main module."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["line"]
    script = Path(sys.argv[0])
    sys.path[0] = str(script.parent)
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__.update(__file__=str(script), __builtins__=__builtins__)
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), main.__dict__)


if __name__ == "__main__":
    for name in LIBRARIES:
        importlib.import_module(name)
    if request := serve():
        become(request)
