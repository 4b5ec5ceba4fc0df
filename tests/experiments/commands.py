"""Experiments as processes of their own: one CPU, no network, no prepared data."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPTS = REPOSITORY / "experiments"


def load(script: Path) -> ModuleType:
    """A script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(script: Path, workdir: Path, *arguments: str) -> list[str]:
    """A debug run in a folder."""
    return [sys.executable, str(script), "--preset", "debug", "--workdir", str(workdir), *arguments]


def environment(workdir: Path) -> dict[str, str]:
    """What a run takes is the embedded set; compiled programs are kept between tests."""
    proxies = [name for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (upper, upper.lower())]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(REPOSITORY / ".jax_cache"),
        "TFDS_DATA_DIR": str(workdir.parent / "tfds"),
        **dict.fromkeys(proxies, "http://127.0.0.1:9"),
        "NO_PROXY": "",
        "no_proxy": "",
    }


def run(script: Path, workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The finished run."""
    return finish(command(script, workdir, *arguments), workdir)


def run_command(script: Path, workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Another command of the script, finished."""
    return finish([sys.executable, str(script), *arguments], workdir)


def finish(line: list[str], workdir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line, capture_output=True, text=True, env=environment(workdir), cwd=workdir.parent, check=False
    )
