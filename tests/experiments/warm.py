"""A Python process that has imported what every experiment needs, and forks for each command.

Importing JAX, Flax and the rest takes some three seconds, which most commands of the tests would spend in vain. JAX's
devices are started by the fork, so each command has its own. One request is a line of JSON on standard input: the
arguments, the folder, the environment, and the files for standard output and standard error; the answer is a line with
the exit code.
"""

import atexit
import importlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parent.parent.parent
LIBRARIES = ("jaxai.experiment", "jaxai.gan", "jaxai.metrics", "jaxai.nn", "jaxai.plots", "matplotlib.pyplot", "tyro")


def run(line: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``[script, *arguments]`` in a fork of the server, as `subprocess.run` does with captured text."""
    with tempfile.TemporaryDirectory() as said:
        out, err = Path(said) / "out", Path(said) / "err"
        request = {"line": line, "folder": str(folder), "environment": environment, "out": str(out), "err": str(err)}
        job = server()
        assert job.stdin
        assert job.stdout
        print(json.dumps(request), file=job.stdin, flush=True)
        code = int(job.stdout.readline())
        return subprocess.CompletedProcess(line, code, out.read_text(), err.read_text())


@cache
def server() -> subprocess.Popen[str]:
    """The server of this test process."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(REPOSITORY / ".jax_cache")  # JAX reads these when it is imported
    line = [sys.executable, "-m", "tests.experiments.warm"]
    job = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    atexit.register(stop, job)
    return job


def stop(job: subprocess.Popen[str]) -> None:
    """End the server by the end of its standard input."""
    job.communicate()


def serve() -> dict | None:
    """Fork for each request. In the fork, return the request; in the server, None when standard input ends."""
    for text in sys.stdin:
        request = json.loads(text)
        child = os.fork()
        if not child:
            return request
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(1, f"{code}\n".encode())
    return None


def become(request: dict) -> None:
    """Turn this fork into the process of a script: its files, folder, environment, arguments and main module."""
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
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
