"""Reproduce ``libreoffice.tsv.gz`` bit for bit from LibreOffice's German and French interface texts.

    python tools/make_libreoffice.py DE.deb FR.deb [--out libreoffice.tsv.gz]

The two packages are Debian 12's libreoffice-l10n-de and -fr, version 4:7.4.7-1+deb12u14 (`apt-get download`); they are
read, not installed. A row is an English text with its German and its French translation, each on one line and without
access key marks. Every text must have 3 to 40 words, mostly letters, no placeholders or markup; the translations must
differ from the English. No two rows share a sentence in any language, ignoring case, punctuation and numbers; among
rows that do, the most frequent is kept. The rows whose English text has the smallest SHA-256 form the test and
validation sets.
"""

import collections
import gzip
import hashlib
import io
import re
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import tyro

PACKAGES = {
    "libreoffice-l10n-de": "aee22c8e3b3c0431f6e1b0bc66f757ba36c860e2651a05eb050fde4897f06548",
    "libreoffice-l10n-fr": "111da5e1b8379dc58a127ef76ef85e2b6819da5cb2c5fe73d13b25a0437f988c",
}
HELD_OUT = {"test": 500, "val": 500}
CODE = re.compile(r"[%$]\w|[${}<>\\~_•]|https?:")  # placeholders, markup, lists; _ and ~ that are not key marks
OUT = Path(__file__).parent.parent / "jaxai/data/files/libreoffice.tsv.gz"

Row = tuple[str, ...]


def read_package(deb: Path, package: str) -> dict[str, bytes]:
    """The .mo files of a package, by name; ``ValueError`` if its SHA-256 is wrong."""
    content = deb.read_bytes()
    if hashlib.sha256(content).hexdigest() != PACKAGES[package]:
        raise ValueError(f"{deb}: another SHA-256; take Debian's {package} 4:7.4.7-1+deb12u14")
    with tarfile.open(fileobj=io.BytesIO(ar_member(content, b"data.tar.xz"))) as archive:
        members = {Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: file.read() for name, file in members.items() if name.endswith(".mo") and file is not None}


def ar_member(archive: bytes, name: bytes) -> bytes:
    """A member of an `ar` archive: an 8-byte signature, then 60-byte headers and contents padded to even length."""
    start = 8
    while archive[start : start + 16].strip() != name:
        size = int(archive[start + 48 : start + 58])
        start += 60 + size + size % 2
    return archive[start + 60 : start + 60 + int(archive[start + 48 : start + 58])]


def read_mo(content: bytes) -> dict[str, str]:
    """Translations by context and text, singular forms only, from gettext's little-endian .mo format."""
    mark, _, count, *tables = struct.unpack_from("<5I", content)
    if mark != 0x950412DE:
        raise ValueError("not a .mo file")

    def text(table: int, number: int) -> str:
        size, start = struct.unpack_from("<2I", content, table + 8 * number)
        return content[start : start + size].decode().split("\0")[0]

    return {text(tables[0], number): text(tables[1], number) for number in range(count)}


def clean(text: str) -> str:
    """Join lines, insert the product name, and remove a single access key mark, as in ``_File`` or ``~File``."""
    text = " ".join(text.replace("%PRODUCTNAME", "LibreOffice").split())
    for mark in "~_":
        if text.count(mark) == 1:
            text = re.sub(mark + r"(?=\w)", "", text)
    return text


def is_sentence(text: str) -> bool:
    characters = text.replace(" ", "")
    letters = sum(c.isalpha() for c in characters)
    return 3 <= len(text.split()) <= 40 and not CODE.search(text) and letters >= 0.75 * len(characters)


def key(text: str) -> str:
    """Normalise a sentence for comparison: fold case, drop punctuation, replace every number by 0."""
    return re.sub(r"\W+", " ", re.sub(r"\d+", "0", text.casefold())).strip()


def translated(german: dict[str, bytes], french: dict[str, bytes]) -> Iterator[Row]:
    """The English, German and French versions of all translated sentences."""
    for name in sorted(german):
        catalogues = [read_mo(files[name]) for files in (german, french)]
        for source in sorted(catalogues[0].keys() & catalogues[1].keys()):
            english = source.split("\4")[-1]  # without its context
            row = tuple(clean(text) for text in (english, *(catalogue[source] for catalogue in catalogues)))
            lengths = [len(text) for text in row]
            alike = max(lengths) <= 2 * min(lengths) + 20  # otherwise the texts differ in content
            if all(is_sentence(text) for text in row) and alike and key(row[0]) not in (key(row[1]), key(row[2])):
                yield row


def distinct(rows: Iterator[Row]) -> list[Row]:
    """Keep rows that share no sentence in any language, preferring frequent ones, in their original order."""
    counts = collections.Counter(rows)
    kept, seen = set(), set()
    for row, _ in counts.most_common():
        keys = {(language, key(text)) for language, text in enumerate(row)}
        if not keys & seen:
            seen |= keys
            kept.add(row)
    return [row for row in counts if row in kept]


def main(german: tyro.conf.Positional[Path], french: tyro.conf.Positional[Path], out: Path = OUT) -> None:
    """Write ``out`` and print its SHA-256 and that of the text."""
    packages = [read_package(deb, package) for deb, package in zip((german, french), PACKAGES, strict=True)]
    rows = distinct(translated(*packages))
    ranked = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).digest())
    names = [name for name, count in HELD_OUT.items() for _ in range(count)]
    split_of = dict(zip(ranked, names, strict=False))  # all other rows are training data
    splits = {split: [row for row in rows if split_of.get(row, "train") == split] for split in ("train", *HELD_OUT)}
    lines = ["\t".join((split, *row)) for split, part in splits.items() for row in part]
    content = "\n".join(["split\ten\tde\tfr", *lines, ""]).encode()
    with out.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(content)
    print("file", hashlib.sha256(out.read_bytes()).hexdigest(), f"{out.stat().st_size:,} bytes")
    print("text", hashlib.sha256(content).hexdigest(), {split: len(part) for split, part in splits.items()})


if __name__ == "__main__":
    tyro.cli(main)
