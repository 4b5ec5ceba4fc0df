"""The table of promises, each with the count that was run.

    python -m tests.faults                          # the short form's counts, 8 minutes
    python -m tests.faults --full                   # those of docs/reliability.md, an hour, and writes it
    python -m tests.faults --full --only kills      # one row anew

Results are kept in --out, so that an interrupted table goes on.
"""

import dataclasses
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

from jaxai import cli
from tests.faults import promises
from tests.faults.runs import REPOSITORY
from tests.faults.test_malformed import all_refused


@dataclasses.dataclass(frozen=True)
class Row:
    """A promise: what it says, what puts it to the test, and how often."""

    words: str
    function: Callable[[Path, int], str]
    short: int
    full: tuple[int, ...]


ROWS = {
    "kills": Row(
        "kill -9: bitwise equal, at most one save interval and one write lost, nothing temporary left",
        promises.kills,
        20,
        (100,),
    ),
    "signals": Row("SIGTERM, SIGINT: final checkpoint and exit within 10 s", promises.signals, 4, (20,)),
    "second_signals": Row("a second signal exits at once", promises.second_signals, 2, (10,)),
    "flips": Row("bit rot: found, the newest good step taken, the bad one renamed", promises.flips, 200, (1000,)),
    "damage": Row(
        "damaged folder: each file of a checkpoint, and three of the run, in four ways",
        promises.damage,
        1,
        (3,),
    ),
    "full_disk": Row(
        "disk full: told before the next save, exit code not 0, goes on later", promises.full_disk, 1, (5,)
    ),
    "read_only": Row("a folder that can't be written to: refused, unchanged", promises.read_only, 2, (4,)),
    "malformed": Row("malformed input: exit code 2, one line, nothing changes", all_refused, 1, (1,)),
    "ranks": Row(
        "several processes: bit-equal, killed and stuck ones noticed, restart equal", promises.ranks, 2, (2, 4)
    ),
    "not_finite": Row("NaN: found at its step; abort, skip or rollback; report", promises.not_finite, 3, (3,)),
    "determinism": Row(
        "determinism: two runs of one seed bitwise equal, every experiment that trains in steps",
        promises.determinism,
        1,
        (99,),
    ),
    "soak": Row("soak: memory under 5 %, no leaked files, one compile per function", promises.soak, 400, (20_000,)),
    "offline": Row("offline: first message within 5 s, naming data set and ways out", promises.offline, 1, (3,)),
    "mutations": Row("untrusted files: typed errors only", promises.mutations, 400, (10_000,)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How much, and where to keep it."""

    full: bool = False
    """The counts of docs/reliability.md, which is written."""
    only: tuple[str, ...] = ()
    """These rows anew; the others as they are in --out."""
    out: Path = Path("runs/faults.json")

    def __post_init__(self) -> None:
        if unknown := set(self.only) - set(ROWS):
            raise ValueError(f"--only {min(unknown)} is unknown: there are {', '.join(ROWS)}")


def main(config: Config) -> None:
    """Put every promise to the test, print, and write the table."""
    logging.getLogger("jaxai").setLevel(logging.ERROR)  # damage is told a thousand times
    found = json.loads(config.out.read_text()) if config.full and config.out.exists() else {}
    for name, row in ROWS.items():
        if name in config.only or (name not in found and not config.only):
            found[name] = []
            for count in row.full if config.full else (row.short,):
                with tempfile.TemporaryDirectory() as folder:
                    began = time.monotonic()
                    found[name].append(f"{row.function(Path(folder), count)}; {time.monotonic() - began:.0f} s")
                print(f"{name}: {found[name][-1]}", flush=True)
            if config.full:
                config.out.parent.mkdir(parents=True, exist_ok=True)
                config.out.write_text(json.dumps(found, indent=1))
    if config.full:
        page = REPOSITORY / "docs" / "reliability.md"
        before, rest = page.read_text(encoding="utf-8").split("<!-- table -->")
        after = rest.partition("<!-- end -->")[2]
        page.write_text(f"{before}<!-- table -->\n{table(found)}<!-- end -->{after}", encoding="utf-8")


def table(found: dict[str, list[str]]) -> str:
    """In Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "orbax-checkpoint"))
    lines = [f"| {row.words} | {'<br>'.join(found.get(name, ['not run']))} |" for name, row in ROWS.items()]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}"
    head = [
        f"`python -m tests.faults --full`, {date.today()}: {machine}.",
        "",
        "| promise | what was run |",
        "|---|---|",
    ]
    return "\n".join([*head, *lines, ""])


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
