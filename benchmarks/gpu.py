"""Measure jaxai on one GPU in ten minutes.

    python benchmarks/gpu.py                                      # every section that fits, the most informative first
    python benchmarks/gpu.py --peers PYTHON --data-dir DIR        # with PyTorch, and CIFAR-10's and MNIST's files
    python benchmarks/gpu.py --only attention masks               # some sections
    python benchmarks/gpu.py --dry                                # every section at small size on a CPU, 3 minutes

PYTHON is an interpreter that has PyTorch for this GPU; by default `python3`, if it has. DIR holds official data files.
Run it on an otherwise idle machine. Each section is a separate process with a time limit; a section that may need more
than the rest of --seconds is not started, and one that fails becomes a row of the results. Numerics are compared with a
float32 reference before anything is timed. Every measurement is appended to OUT/results.jsonl at once; at the end
OUT/results.md tabulates all of them (docs/gpu.md). The exit code is 0 whatever the rows contain.
"""

import contextlib
import dataclasses
import difflib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    from jaxai import cli
except ImportError as missing:
    print(f"error: {missing}: run pip install tyro, and pip install -e . or set PYTHONPATH", file=sys.stderr)
    sys.exit(2)
from gpu_sections.session import FAILED, NOT_RUN, STATUSES, Session

from jaxai.errors import MissingFileError, UserError

SCRIPT = Path(__file__).resolve()
SECTIONS = {
    "environment": 30,
    "correctness": 85,
    "attention": 110,
    "gan_step": 95,
    "nanogpt": 90,
    "masks": 65,
    "orders": 35,
    "gan_mnist": 50,
    "airbench": 40,
    "decode": 20,
    "lstm": 25,
    "convolution": 25,
}
"""Time limits in seconds on a GPU."""
DRY_SECONDS = 400
"""Time limit of each section with --dry, on shared cores."""
PROBE = """
import jax, json, importlib.metadata as m
device = jax.devices()[0]
assert device.platform == "{platform}", f"JAX finds {{device.platform}}"
versions = {{name: m.version(name) for name in ("jax", "jaxlib")}}
print(json.dumps({{"device": device.device_kind, "versions": versions}}))
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    seconds: float = 540.0
    """Time limit of the whole benchmark."""
    only: tuple[str, ...] = ()
    """Sections to run; all by default."""
    dry: bool = False
    """Small sizes on the CPU, to test that every section runs."""
    peers: Path | None = None
    """An interpreter that has PyTorch; by default python3, if it has PyTorch."""
    data_dir: Path | None = None
    """A folder with official data files."""
    out: Path = Path("runs/benchmarks/gpu")

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in SECTIONS:
                near = difflib.get_close_matches(name, SECTIONS, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError(f"--only {name} is unknown: {hint}there are {', '.join(SECTIONS)}")
        if not self.seconds > 0:
            raise UserError(f"--seconds must be positive, got {self.seconds}")
        if self.peers and not self.peers.is_file():
            raise MissingFileError(f"--peers {self.peers} is not a file: give an interpreter that has PyTorch")
        if self.data_dir and not self.data_dir.is_dir():
            raise MissingFileError(f"--data-dir {self.data_dir} is not a folder: give one with official files")


def main(config: Config) -> None:
    """Run the sections and write the table, even if sections fail."""
    until = time.monotonic() + config.seconds
    found = probe(config.dry)
    peers = find_torch(config.peers, config.dry)
    names = [name for name in SECTIONS if name in (config.only or SECTIONS)]
    config.out.mkdir(parents=True, exist_ok=True)
    options = {"dry": config.dry, "peers": peers, "data_dir": config.data_dir, "out": config.out}
    options |= {"started": datetime.now().isoformat(timespec="seconds"), **found}
    try:
        for name in names:
            left, limit = until - time.monotonic(), DRY_SECONDS if config.dry else SECTIONS[name]
            session = Session(name, limit, **options)
            if SECTIONS[name] > left:
                reason = f"needs {SECTIONS[name]} s, {max(left, 0):.0f} s are left: run it with --only {name}"
                session.row("section", status=NOT_RUN, detail=reason)
            else:
                run_section(session)
    finally:
        text = table(read_rows(config.out / "results.jsonl"))
        (config.out / "results.md").write_text(text)
        print(f"\n{text}\n{config.out / 'results.md'}", flush=True)


def environment(dry: bool) -> dict[str, str]:
    """Environment variables of every process: JAX on one platform, without preallocating GPU memory."""
    return {**os.environ, "JAX_PLATFORMS": "cpu" if dry else "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def probe(dry: bool) -> dict[str, Any]:
    """JAX's device and versions, from a separate process. UserError if there is no GPU."""
    program = PROBE.format(platform="cpu" if dry else "gpu")
    line = [sys.executable, "-c", program]
    job = subprocess.run(line, capture_output=True, text=True, check=False, env=environment(dry))
    if job.returncode:
        fix = "install JAX for it with pip install -e '.[cuda12]' or '.[cuda13]', or try --dry"
        raise UserError(f"JAX finds no GPU here ({last_line(job.stderr)}): {fix}")
    return json.loads(job.stdout.splitlines()[-1])


def find_torch(peers: Path | None, dry: bool) -> Path | None:
    """The given interpreter, or `python3`, if it has PyTorch for this device. UserError if the given one has not."""
    python = peers or (None if dry else shutil.which("python3"))
    if python is None:
        return None
    program = "import torch" if dry else "import torch; assert torch.cuda.is_available(), 'PyTorch finds no GPU'"
    job = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    if job.returncode and peers:
        raise UserError(f"--peers {peers}: {last_line(job.stderr)}; give an interpreter with PyTorch for this device")
    return None if job.returncode else Path(python)


def run_section(session: Session) -> None:
    """Run a section in its own process group, killed at the time limit. A failure becomes a row."""
    print(f"\n{session.section}: at most {session.seconds:.0f} s", flush=True)
    log = session.out / f"{session.section}.log"
    before = time.monotonic()
    with log.open("w") as messages:
        line = [sys.executable, str(SCRIPT), "section", session.to_json()]
        job = subprocess.Popen(line, stderr=messages, start_new_session=True, env=environment(session.dry))
        try:
            job.wait(session.seconds)
            said = f"ended with exit code {job.returncode}: {last_line(log.read_text(errors='replace'))}"
            if job.returncode < 0:
                said = f"ended by {signal.Signals(-job.returncode).name}: {last_line(log.read_text(errors='replace'))}"
        except subprocess.TimeoutExpired:
            said = f"was stopped at its limit of {session.seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    if job.returncode:
        session.row("section", status=FAILED, detail=f"{said} (see {log})")
    session.row("section's seconds", round(time.monotonic() - before, 1), "s")


def last_line(text: str) -> str:
    """The last line of a program's output."""
    return (text.strip().splitlines() or ["no message"])[-1][:300]


def section(arguments: str) -> None:
    """Run a section's module in its process. An exception becomes a row."""
    session = Session.from_json(arguments)
    with session.guarded("section"):
        importlib.import_module(f"gpu_sections.{session.section}").run(session)


# The results


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of each section's newest run; incomplete lines, cut off by a kill, are skipped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    newest: dict[str, str] = {}
    for row in rows:
        newest[row["section"]] = max(newest.get(row["section"], ""), row["started"])
    return [row for row in rows if row["started"] == newest[row["section"]]]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table, ordered by status."""
    counts = {status: [row for row in rows if row["status"] == status] for status in STATUSES}
    starts = sorted({(row["device"], json.dumps(row["versions"]), row["dry"]) for row in rows})
    lines = ["# GPU benchmark", "", ", ".join(f"{len(chosen)} {status}" for status, chosen in counts.items()), ""]
    for device, versions, dry in starts:
        named = ", ".join(f"{name} {version}" for name, version in json.loads(versions).items())
        lines.append(f"{device}, {named}{'; small sizes on a CPU: not a measurement' if dry else ''}\n")
    lines += ["| status | section | what | value | bound | from ... to | detail |", "|---|---|---|---|---|---|---|"]
    for row in [row for chosen in counts.values() for row in chosen]:
        value = "" if row["value"] is None else f"{row['value']} {row['unit']}".strip()
        spread = row["spread"]
        cells = [row["status"], row["section"], row["what"], value, row["wanted"]]
        cells += [f"{spread['min']} ... {spread['max']}" if spread else "", row["detail"]]
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["section"]:
        section(sys.argv[2])
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the table is written
        cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
