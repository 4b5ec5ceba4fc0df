"""Sentence pairs for translation, embedded or from parallel files, and batches with a few fixed shapes.

pairs = load_pairs(None, "train", "en", "de")         # or a folder: load_pairs("multi30k", "train", "de", "en")
bpe = train_bpe(pairs.sources + pairs.targets, 8_000, lowercase=False)
batches = bucketed(bpe.encode(pairs.sources), framed(bpe.encode(pairs.targets)), 4_096, seed=0)
"""

import dataclasses
import hashlib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Int32, Int64, Integer

from jaxai.data import embedded
from jaxai.data.buckets import grouped, length_groups
from jaxai.data.dataset import Dataset
from jaxai.data.pipeline import check_rows, endless
from jaxai.data.text.corpus import read_utf8
from jaxai.errors import MissingFileError, UserError

logger = logging.getLogger("jaxai.data")

Sentences = Sequence[Integer[np.ndarray, "_"]]
Batch = dict[str, Int32[np.ndarray, "B _"]]


@dataclasses.dataclass(frozen=True)
class Pairs(Dataset):
    """Sentences and their translations, of equal number and none empty."""

    name: str
    sources: tuple[str, ...] = dataclasses.field(repr=False)
    targets: tuple[str, ...] = dataclasses.field(repr=False)
    source: str
    embedded: bool
    fingerprint: str

    def beside(self, translations: Sequence[str]) -> str:
        """Format each sentence with its reference after ``=`` and a model's translation after ``>``."""
        rows = zip(self.sources, self.targets, translations, strict=True)
        return "".join(f"{source}\n= {target}\n> {found}\n\n" for source, target, found in rows)


def load_pairs(folder: str | os.PathLike | None, split: str, source: str, target: str) -> Pairs:
    """Load the line pairs of ``folder/SPLIT.SOURCE`` and ``folder/SPLIT.TARGET`` (train.de, train.en), plain or .gz.

    ``None`` selects the embedded set, LibreOffice's interface texts: splits train, val and test, languages en, de and
    fr. In files, whitespace at both ends of a line is dropped, and so are pairs with an empty side, which the log line
    (logger ``jaxai.data``) counts. Only LF, CR LF and CR end a line, not Unicode's other line separators.

    Raises ``FileNotFoundError`` for a missing folder or file, ``ValueError`` for unequal numbers of lines, files that
    are not UTF-8, files without a pair, and a split or language that is not in the embedded set.
    """
    if folder is None:
        kept, where = embedded.libreoffice(split, source, target), " of LibreOffice's interface texts, embedded"
    else:
        kept, where = _read(Path(folder).expanduser(), split, source, target)
    sources, targets = zip(*kept, strict=True)
    data = "libreoffice" if folder is None else Path(folder).expanduser().resolve().name
    name = f"{data} {split} {source}-{target}"
    line = f"{name}: {len(kept):,} pairs{where}"
    logger.info(line)
    fingerprint = hashlib.sha256("\n".join(sources).encode() + b"\n\n" + "\n".join(targets).encode()).hexdigest()[:16]
    return Pairs(name, sources, targets, line, folder is None, fingerprint)


def _read(root: Path, split: str, source: str, target: str) -> tuple[list[tuple[str, str]], str]:
    """The pairs of two files, and the end of the source line."""
    paths = [_find(root, f"{split}.{language}") for language in (source, target)]
    lines = [_lines(path) for path in paths]
    if len(lines[0]) != len(lines[1]):
        counts = " and ".join(f"{path} has {len(part):,} lines" for path, part in zip(paths, lines, strict=True))
        raise UserError(f"{counts}; line by line they must translate each other: fetch both from the same release")
    kept = [pair for pair in zip(*lines, strict=True) if all(pair)]
    if not kept:
        raise UserError(f"{paths[0]} and {paths[1]} have no line that is not empty in both; give other files")
    dropped = len(lines[0]) - len(kept)
    without = f", without {dropped:,} with an empty side" if dropped else ""
    return kept, f"{without} from {paths[0]} and {paths[1].name}"


def _lines(path: Path) -> list[str]:
    text = read_utf8(path).removesuffix("\n")
    return [line.strip() for line in text.split("\n")] if text else []


def _find(folder: Path, name: str) -> Path:
    """The file ``name`` or ``name.gz``."""
    if not folder.is_dir():
        raise MissingFileError(f"folder {folder} does not exist or is a file; give the one that holds {name}")
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise MissingFileError(f"{folder / name}: no such file, nor {name}.gz; files are named SPLIT.LANGUAGE (train.en)")


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Pairs of similar length, padded to one shape; ``rows`` are their indices in the data set."""

    rows: Int64[np.ndarray, " n"]
    batch_size: int
    source_length: int
    target_length: int


def buckets(
    sources: Sentences, targets: Sentences, tokens_per_batch: int, *, multiple: int = 1, shapes: int = 8
) -> list[Bucket]:
    """Divide the pairs into at most ``shapes`` groups by the length of their longer side, with the least padding.

    A group's ``batch_size`` is the greatest multiple of ``multiple`` for which neither side of a batch exceeds
    ``tokens_per_batch``, padding included; it is limited to the group's size, rounded up to a multiple. An epoch has
    ``sum(len(b.rows) / b.batch_size)`` batches. Raises ``ValueError`` as ``bucketed`` does.
    """
    if multiple < 1 or shapes < 1:
        raise UserError(f"multiple is {multiple}, shapes is {shapes}; choose the number of devices, and at least 1")
    if len(sources) != len(targets) or not len(sources):
        raise UserError(f"{len(sources):,} sources and {len(targets):,} targets; they must be as many, and at least 1")
    lengths = np.array([[len(s), len(t)] for s, t in zip(sources, targets, strict=True)])
    if not lengths.all():
        raise UserError(f"pair {int(np.flatnonzero(~lengths.all(axis=1))[0])} has an empty side; leave it out")
    longer = lengths.max(axis=1)
    if longer.max() * multiple > tokens_per_batch:
        raise UserError(
            f"tokens_per_batch is {tokens_per_batch:,}, but the longest sentence has {longer.max():,} tokens"
            f" and a batch a multiple of {multiple} rows; choose at least {longer.max() * multiple:,}"
        )
    found = []
    for low, high in length_groups(longer, lengths, shapes):
        rows = np.flatnonzero((low <= longer) & (longer <= high))
        fit, there = tokens_per_batch // high // multiple * multiple, -(-len(rows) // multiple) * multiple
        found.append(Bucket(rows, min(fit, there), *lengths[rows].max(axis=0).tolist()))
    return found


def bucketed(
    sources: Sentences,
    targets: Sentences,
    tokens_per_batch: int,
    *,
    seed: int,
    multiple: int = 1,
    shapes: int = 8,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator of ``source`` int32 [B, S] and ``target`` int32 [B, T], padded with 0.

    The shapes are those of ``buckets``; a jitted step compiles once for each. On Multi30k, 13 % of the tokens are
    padding with 8 shapes, 22 % with 4. The order is that of ``grouped``. Set ``multiple`` to the number of devices.
    State and processes are handled as in ``jaxai.data.pipeline.batches``.

    Raises ``ValueError`` for unequal numbers of sentences, no sentences, an empty sentence, ``tokens_per_batch`` too
    small for the longest sentence, a multiple below 1, a process index outside 0 ... process_count - 1, and a negative
    seed.
    """
    check_rows(max(process_count, 1), process_index, process_count, seed)
    groups = buckets(sources, targets, tokens_per_batch, multiple=math.lcm(multiple, process_count), shapes=shapes)
    arrays = [
        {
            "source": padded([sources[row] for row in group.rows], group.source_length),
            "target": padded([targets[row] for row in group.rows], group.target_length),
        }
        for group in groups
    ]
    sizes = [(len(group.rows), group.batch_size) for group in groups]
    rows = grouped(sizes, seed=seed, process_index=process_index, process_count=process_count)

    def batch(index: int) -> Batch:
        group, chosen = rows(index)
        return {name: array[chosen] for name, array in arrays[group].items()}

    return endless(batch)


def evaluation_batches(sources: Sentences, targets: Sentences, batch_size: int) -> list[Batch]:
    """All pairs once, in order, as batches of one shape; the last batch is filled with rows of padding."""
    count = -(-len(sources) // batch_size) * batch_size
    arrays = {name: padded(side, max(map(len, side))) for name, side in (("source", sources), ("target", targets))}
    arrays = {name: np.pad(x, ((0, count - len(x)), (0, 0))) for name, x in arrays.items()}
    return [
        {name: x[first : first + batch_size] for name, x in arrays.items()} for first in range(0, count, batch_size)
    ]


def padded(sentences: Sentences, length: int) -> Int32[np.ndarray, "n _"]:
    """Stack sequences as rows of an array int32 [n, length], padded with `PAD`."""
    result = np.zeros((len(sentences), length), np.int32)
    for row, sentence in zip(result, sentences, strict=True):
        row[: len(sentence)] = sentence
    return result
