"""Test every promise of docs/reliability.md and print the results.

    python -m tests.faults                          # the short form's counts, 8 minutes
    python -m tests.faults --full                   # the full counts, an hour; writes docs/reliability.md
    python -m tests.faults --full --only kills      # repeat one row

The results of --full are kept in --out; an interrupted command continues from them.
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
    """A promise: its text, the function that tests it, and the counts of the short and the full form."""

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
    "flips": Row(
        "bit rot: detected, the newest intact checkpoint used, the damaged one renamed", promises.flips, 200, (1000,)
    ),
    "damage": Row(
        "damaged folder: each file of a checkpoint, and three of the run, in four ways",
        promises.damage,
        1,
        (3,),
    ),
    "full_disk": Row(
        "disk full: reported before the next save, exit code not 0, can be resumed", promises.full_disk, 1, (5,)
    ),
    "read_only": Row("a folder that can't be written to: refused, unchanged", promises.read_only, 2, (4,)),
    "malformed": Row("malformed input: exit code 2, one line, nothing is changed", all_refused, 1, (1,)),
    "ranks": Row(
        "several processes: bitwise equal, killed and stuck ones detected, restart bitwise equal",
        promises.ranks,
        2,
        (2, 4),
    ),
    "not_finite": Row("NaN: detected at its step; abort, skip or rollback; report", promises.not_finite, 3, (3,)),
    "determinism": Row(
        "determinism: two runs of one seed bitwise equal, every experiment that trains in steps",
        promises.determinism,
        1,
        (99,),
    ),
    "soak": Row("soak: memory under 5 %, no leaked files, one compile per function", promises.soak, 400, (20_000,)),
    "offline": Row(
        "offline: first message within 5 s, naming the data set and the alternatives", promises.offline, 1, (3,)
    ),
    "mutations": Row("untrusted files: typed errors only", promises.mutations, 400, (10_000,)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which rows to test, how often, and where to keep the results."""

    full: bool = False
    """Use the full counts and write docs/reliability.md."""
    only: tuple[str, ...] = ()
    """Rows to repeat; the others are read from --out."""
    out: Path = Path("runs/faults.json")

    def __post_init__(self) -> None:
        if unknown := set(self.only) - set(ROWS):
            raise ValueError(f"--only {min(unknown)} is unknown: there are {', '.join(ROWS)}")


def main(config: Config) -> None:
    """Test the promises, print the results, and write the table if ``full``."""
    logging.getLogger("jaxai").setLevel(logging.ERROR)  # damage would be logged a thousand times
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
    """Format the results as a Markdown table."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "orbax-checkpoint"))
    lines = [f"| {row.words} | {'<br>'.join(found.get(name, ['not run']))} |" for name, row in ROWS.items()]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}"
    head = [
        f"`python -m tests.faults --full`, {date.today()}: {machine}.",
        "",
        "| promise | result |",
        "|---|---|",
    ]
    return "\n".join([*head, *lines, ""])


if __name__ == "__main__":
    cli.guard(lambda: main(cli.read(Config, sys.argv[1:], description=__doc__)))
