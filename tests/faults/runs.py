"""Runs of the experiments as processes that can be started, watched, killed and compared."""

import dataclasses
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.experiments import commands, warm
from tests.experiments.commands import REPOSITORY

PATIENCE = 300.0  # timeout in seconds, generous for busy machines

SAVES = ("--checkpoint-every", "5", "--checkpoint-seconds", "0")
EXPERIMENTS = {
    "gan": ("gan_mnist", "--preset", "debug", *SAVES),
    "convolutional": ("cnn_cifar10", "--preset", "debug", *SAVES),
    "recurrent": ("text_generation", "--preset", "debug", "--network", "recurrent", "--eval-batches", "0", *SAVES),
    "transformer": ("text_generation", "--preset", "debug", *SAVES),
}
"""Commands at sizes that take seconds, with a checkpoint every five steps."""
LEFT_OUT = {"text_generation", "linear_regression"}  # listed above, or trains without checkpoints
OTHERS = {
    path.stem: (path.stem, "--preset", "debug")
    for path in sorted((REPOSITORY / "experiments").glob("*.py"))
    if path.stem not in LEFT_OUT
}
ARTICLE = {"article": ("cnn_cifar10",)}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run of one of the experiments in a folder."""

    name: str
    folder: Path
    steps: int
    options: tuple[str, ...] = ()

    def start(self, *more: str, before: str = "") -> subprocess.Popen[str] | warm.Job:
        """Start a process whose standard error goes to the file ``said``.

        It is a fork of a process that has imported the libraries; with ``before``, Python code to run first, it is a
        new interpreter.
        """
        script, *options = (EXPERIMENTS | OTHERS | ARTICLE)[self.name]
        line = [str(REPOSITORY / "experiments" / f"{script}.py"), *options, *self.options, *more]
        line += ["--steps", str(self.steps), "--platform", "cpu", "--workdir", str(self.folder)]
        parent = self.folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        if not before:
            return warm.Job(line, parent, environment(), Path(os.devnull), self.said)
        # exec replaces this process: no fork of a process that has threads
        first = f"{before}\nimport os, sys\nos.execv(sys.argv[1], sys.argv[1:])"
        line = [sys.executable, "-c", first, sys.executable, *line]
        with self.said.open("w") as said:
            return subprocess.Popen(
                line, text=True, stdout=subprocess.DEVNULL, stderr=said, env=environment(), cwd=parent
            )

    def finish(self, *more: str, before: str = "") -> tuple[int, str]:
        """Start a process, wait for it, and return its exit code and standard error."""
        process = self.start(*more, before=before)
        try:
            code = process.wait(PATIENCE)
        finally:
            process.kill()
        return code, self.said.read_text()

    @property
    def said(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.said")

    @property
    def last_step(self) -> int:
        """The last step in metrics.jsonl; 0 if there is none."""
        return max((line["step"] for line in whole_lines(self.folder / "metrics.jsonl")), default=0)

    @property
    def checkpoints(self) -> list[int]:
        return sorted(int(path.name) for path in (self.folder / "checkpoints").glob("*") if path.name.isdecimal())

    def outcome(self) -> tuple[list[str], str]:
        """The exact loss of every step, and the SHA-256 of the final state: equal if two runs are bitwise equal."""
        lines = whole_lines(self.folder / "metrics.jsonl")
        exact = [f"{line['step']} {key} {line[key]}" for line in lines for key in sorted(line) if key.endswith("_hex")]
        assert self.checkpoints[-1] == self.steps, f"{self.folder} ends at step {self.checkpoints[-1]}"
        return exact, state_hash(self.folder / "checkpoints" / str(self.steps))

    def leftovers(self) -> list[str]:
        """Temporary files that a killed process may leave and the next start must remove."""
        pattern = re.compile(r"\.unfinished|\.orbax-checkpoint-tmp|\.tmp$")
        return [str(path) for path in self.folder.rglob("*") if pattern.search(path.name)]


def environment() -> dict[str, str]:
    """No network, no prepared data, XLA as for users, a compilation cache, this repository's modules."""
    return {**commands.environment(Path("/nonexistent/run")), "XLA_FLAGS": "", "PYTHONPATH": str(REPOSITORY)}


def whole_lines(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl, without a truncated last one."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def state_hash(checkpoint: Path) -> str:
    """The SHA-256 of all arrays of a checkpoint, read without the code under test."""
    with ocp.PyTreeCheckpointer() as reader:
        names = reader.metadata(checkpoint / "state").item_metadata.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        arrays = reader.restore(checkpoint / "state", restore_args=numpy)
    digest = hashlib.sha256()
    for name, array in sorted(flat(arrays)):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def flat(tree, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        return [leaf for name, value in tree.items() for leaf in flat(value, f"{prefix}/{name}")]
    if isinstance(tree, list | tuple):
        return [leaf for number, value in enumerate(tree) for leaf in flat(value, f"{prefix}/{number}")]
    if tree is None:
        return []
    is_key = jax.numpy.issubdtype(tree.dtype, jax.dtypes.prng_key)
    return [(prefix, np.asarray(jax.random.key_data(tree) if is_key else tree))]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | warm.Job) -> bool:
    """Wait for a condition; return whether it became true before the process ended."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        if condition():
            return True
        if process.poll() is not None:
            return condition()
        time.sleep(0.02)
    raise AssertionError(f"{process.args} did not meet the condition within {PATIENCE} s")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
