"""Shared by the training sections: experiments run as commands, turns of PyTorch's training steps."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import NotAvailable, Turn

from gpu_sections.session import REPOSITORY, Session


def peer_turns(ask: Callable[..., dict[str, Any]], steps: int, **request: Any) -> Turn:
    """Turns of ``steps`` training steps in PyTorch."""
    return lambda repeats: [ask(ask="time", steps=steps, **request)["seconds"] for _ in range(repeats)]


def experiment(session: Session, name: str, workdir: Path, *options: str) -> dict[str, Any]:
    """Run an experiment from the command line, without network access, and return its summary.

    Raise NotAvailable for a user error, such as a missing data set, and RuntimeError with the last message if it fails.
    """
    line = [sys.executable, str(REPOSITORY / "experiments" / f"{name}.py"), "--workdir", str(workdir), *options]
    line += ["--platform", "cpu" if session.dry else "gpu"]
    line += ["--data-dir", str(session.data_dir)] if session.data_dir else []
    proxies = [form for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for form in (upper, upper.lower())]
    environment = {**os.environ, **dict.fromkeys(proxies, "http://127.0.0.1:9"), "NO_PROXY": "", "no_proxy": ""}
    job = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    print(job.stdout, job.stderr, file=sys.stderr, flush=True)
    said = (job.stderr.strip().splitlines() or ["no message"])[-1]
    if job.returncode == 2:
        raise NotAvailable(said)
    if job.returncode:
        raise RuntimeError(f"{name} ended with exit code {job.returncode}: {said}")
    return json.loads((workdir / "summary.json").read_text())
