"""Text for language models on characters or bytes: loading, vocabularies, and batches in three different orders.

text = load_text(None)                                # or a file
vocabulary = characters(text.string)                  # or BYTES
train, validation = split(vocabulary.encode(text.string))
batches = windows(train, 12, 64, seed=0)              # or streams(train, 12, 64)
for batch in ordered(validation, 12, 64): ...
"""

import codecs
import dataclasses
import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Integer

from jaxai.data import embedded
from jaxai.data.dataset import Dataset
from jaxai.data.pipeline import Gathered, check_rows, endless, own_rows
from jaxai.data.random import integers
from jaxai.errors import MissingFileError, UserError

logger = logging.getLogger("jaxai.data")

Batch = dict[str, Int32[np.ndarray, "B T"] | Bool[np.ndarray, " B"] | Float32[np.ndarray, "B T"]]
Ids = Integer[np.ndarray, " n"]

SHORTEST = 1_000  # characters: the validation part, a tenth, then still holds a window or two


@dataclasses.dataclass(frozen=True)
class Text(Dataset):
    """A text as one ``string``."""

    name: str
    string: str = dataclasses.field(repr=False)
    source: str
    embedded: bool
    fingerprint: str


def load_text(file: str | os.PathLike | None = None) -> Text:
    """Load a UTF-8 file, plain or gzipped; ``None`` selects the embedded text, eight plays of Shakespeare.

    A byte order mark is dropped, and the line endings CR LF and CR become LF. The source is logged in one line (logger
    ``jaxai.data``).

    Raises ``FileNotFoundError`` for a missing file or a folder, ``ValueError`` for a file that is not UTF-8 (with the
    offset of the first invalid byte), damaged gzip and a text of less than 1,000 characters.

    >>> text = load_text()
    >>> len(text.string), text.identity()
    (1076592, {'name': 'shakespeare', 'fingerprint': '6ed6cba7e9b17f07', 'embedded': True})
    """
    if file is None:
        name, string, where = "shakespeare", embedded.shakespeare(), "in eight embedded plays"
    else:
        path = Path(file).expanduser()
        name, string, where = path.name, read_utf8(path), f"from {path}"
        if len(string) < SHORTEST:
            state = f"only {len(string):,} characters" if string else "empty"
            raise UserError(f"{path}: {state}; give a text of at least {SHORTEST:,}, better a million")
    source = f"{name}: {len(string):,} characters ({len(set(string)):,} different) {where}"
    logger.info(source)
    fingerprint = hashlib.sha256(string.encode()).hexdigest()[:16]
    return Text(name, string, source, file is None, fingerprint)


def read_utf8(path: Path) -> str:
    """Read a UTF-8 file, plain or gzipped, without byte order mark and with LF line endings; errors: `load_text`."""
    if not path.is_file():
        state = "is a folder; give the text file in it" if path.is_dir() else "does not exist; check the path"
        raise MissingFileError(f"{path} {state}")
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):  # gzip's magic number, with which no UTF-8 text begins
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: damaged gzip ({error}); fetch the file again") from error
    try:
        string = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + 3 * content.startswith(b"\xef\xbb\xbf")  # the codec counts from after the mark
        encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"
        raise UserError(
            f"{path}: not UTF-8 (byte 0x{content[offset]:02x} at offset {offset:,}); convert it, for instance with"
            f" `iconv -f {encoding} -t utf-8`"
        ) from error
    return string.replace("\r\n", "\n").replace("\r", "\n")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A mapping between text and ids: the sorted ``characters`` of a text, or UTF-8 bytes if it is ``None``."""

    characters: str | None

    def __post_init__(self) -> None:
        if self.characters is not None and (not self.characters or self.characters != _distinct(self.characters)):
            raise UserError("characters must be sorted, distinct and at least one; take characters(text)")

    @property
    def size(self) -> int:
        """The number of ids."""
        return 256 if self.characters is None else len(self.characters)

    def encode(self, string: str) -> Int32[np.ndarray, " n"]:
        """Encode a string; ``ValueError`` for characters that are not in the vocabulary.

        >>> characters("hello").encode("hole")
        array([1, 3, 2, 0], dtype=int32)
        """
        if self.characters is None:
            return np.frombuffer(string.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32)
        known, codes = _codes(self.characters), _codes(string)
        ids = np.searchsorted(known, codes).astype(np.int32)
        unknown = known[np.minimum(ids, self.size - 1)] != codes
        if unknown.any():
            raise UserError(_unknown(_string(np.unique(codes[unknown])), self.characters))
        return ids

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """Decode ids to a string. Bytes that are not UTF-8 become U+FFFD; ``ValueError`` for ids out of range."""
        if ids.size and not (ids.min() >= 0 and ids.max() < self.size):
            raise UserError(f"ids are {ids.min()} to {ids.max()}, expected 0 to {self.size - 1}: another vocabulary's")
        if self.characters is None:
            return ids.astype(np.uint8).tobytes().decode("utf-8", "replace")
        return _string(_codes(self.characters)[ids])

    def decode_pieces(self, pieces: Iterable[Integer[np.ndarray, " _"]]) -> Iterator[str]:
        """Decode consecutive pieces of ids; a character whose bytes span two pieces is returned with the second."""
        if self.characters is not None:
            yield from map(self.decode, pieces)
            return
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in pieces:
            yield decoder.decode(piece.astype(np.uint8).tobytes())
        yield decoder.decode(b"", final=True)

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as JSON values, to be saved with a run."""
        return {"characters": self.characters}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Vocabulary":
        """Restore a vocabulary from the output of ``to_json``; ``ValueError`` for anything else."""
        if not isinstance(value, dict) or not isinstance(value.get("characters", 0), str | None):
            raise UserError("value is no vocabulary ('characters': a string or null); take what to_json wrote")
        return cls(value["characters"])


BYTES = Vocabulary(None)
"""The 256 bytes, for text in any alphabet."""


def characters(string: str) -> Vocabulary:
    """The vocabulary of a text's distinct characters, sorted by code point, as in char-rnn and nanoGPT.

    >>> characters("banana").characters
    'abn'
    """
    return Vocabulary(_distinct(string))


def _distinct(string: str) -> str:
    return "".join(sorted(set(string)))


def _codes(string: str) -> np.ndarray:
    """Code points, uint32 [n], including lone surrogates (from command-line bytes that are not UTF-8)."""
    return np.frombuffer(string.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _string(codes: np.ndarray) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _unknown(strange: str, known: str) -> str:
    """The message for characters that a vocabulary lacks."""
    named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in strange[:5])
    more = f" and {len(strange) - 5:,} more" if len(strange) > 5 else ""
    shown = f"{known[:100]!r}" + ("..." if len(known) > 100 else "")
    return (
        f"string has {named}{more}, not among the {len(known):,} characters of the vocabulary: {shown}; leave them out,"
        " or train on a text that has them or on bytes"
    )


def split(ids: Ids, held_out: float = 0.1) -> tuple[Integer[np.ndarray, " train"], Integer[np.ndarray, " validation"]]:
    """Split ids into the first ``int((1 - held_out) * n)`` for training and the rest for validation, as in nanoGPT.

    Raises ``ValueError`` if one of the parts would be empty.

    >>> [part.tolist() for part in split(np.arange(10), held_out=0.2)]
    [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]
    """
    cut = int((1 - held_out) * len(ids))
    if not 0 < cut < len(ids):
        raise UserError(
            f"held_out is {held_out}, which leaves {cut:,} of {len(ids):,} ids to train on; choose it between 0 and 1"
        )
    return ids[:cut], ids[cut:]


def windows(
    ids: Ids, batch_size: int, length: int, *, seed: int, process_index: int = 0, process_count: int = 1
) -> Gathered:
    """An endless iterator of windows at random positions: ``input`` and ``target`` int32 [B, T], T = ``length``.

    ``target`` is ``input`` shifted by one id. Positions are uniform and independent, as in nanoGPT's ``get_batch``, and
    depend on ``seed`` and the step alone. State and processes are handled as in ``jaxai.data.pipeline.batches``.

    Raises ``ValueError`` for a length outside 1 ... n - 1, a batch size below 1 or not divisible by ``process_count``,
    a process index outside 0 ... process_count - 1, and a negative seed.
    """
    check_rows(batch_size, process_index, process_count, seed)
    _check_length(ids, length)
    mine, places = own_rows(batch_size, process_index, process_count), len(ids) - length

    def starts(index: int) -> dict[str, np.ndarray]:
        return {"start": _small(integers(places, (batch_size,), seed, index)[mine], len(ids))}

    return Gathered({"ids": _compact(ids)}, endless(starts), partial(_gather, length))


def random_windows(ids: Ids, batch_size: int, length: int, *, count: int, first: int = 0, seed: int) -> Iterator[Batch]:
    """``count`` batches of ``windows``, from batch ``first`` on, for estimating the loss of a text.

    They have a ``weight`` as in ``ordered``, 1 everywhere. Errors are those of ``windows``.
    """
    batches, weight = windows(ids, batch_size, length, seed=seed), np.ones((batch_size, length), np.float32)
    batches.set_state({"next_index": first})
    return (next(batches) | {"weight": weight} for _ in range(count))


def streams(ids: Ids, batch_size: int, length: int, *, process_index: int = 0, process_count: int = 1) -> Gathered:
    """An endless iterator for truncated backpropagation through time: each row continues its row in the previous batch.

    Yields ``input`` and ``target`` int32 [B, T] as in ``windows``, and ``first`` bool [B], true where the model must
    reset its carried state. As in char-rnn, the text is cut into B streams of ``K T`` ids, K = (n - 1) // (B T). Batch
    k has columns ``k T ... (k + 1) T - 1`` of each stream, and every epoch consists of the same K batches. The
    remaining ids at the end of the text, at most B T, are not used as inputs. State and processes are handled as in
    ``jaxai.data.pipeline.batches``.

    Raises ``ValueError`` as ``windows`` does, and for a text that is too short for one batch.
    """
    check_rows(batch_size, process_index, process_count)
    _check_length(ids, length)
    count = (len(ids) - 1) // (batch_size * length)
    if not count:
        raise UserError(
            f"batch_size {batch_size} times length {length} needs {batch_size * length + 1:,} ids, but there are"
            f" {len(ids):,}; choose smaller ones"
        )
    local = batch_size // process_count
    starts = np.arange(process_index * local, (process_index + 1) * local) * count * length

    def columns(index: int) -> dict[str, np.ndarray]:
        column = index % count
        return {"start": _small(starts + column * length, len(ids)), "first": np.full(local, column == 0)}

    return Gathered({"ids": _compact(ids)}, endless(columns), partial(_gather, length))


def ordered(ids: Ids, batch_size: int, length: int) -> Iterator[Batch]:
    """One pass over a text, for evaluation: ``input`` and ``target`` int32 [B, T], ``weight`` float32 [B, T], 0 or 1.

    Every id but the first is a target exactly once, with weight 1; padding has weight 0. The text's mean loss is
    ``sum(weight loss) / sum(weight)``. Row b of the concatenated batches is the b-th of B contiguous parts of the text,
    whose lengths differ by one id at most. A model that carries its state from batch to batch sees all of its part so
    far. A model that does not, such as a Transformer, sees at column t only the t + 1 inputs of its row: the first
    columns have little context, so the mean loss is higher than with full context, as in nanoGPT's estimate. The effect
    shrinks with ``length``; compare losses only at equal lengths.

    Raises ``ValueError`` for a batch size or a length below 1, and for fewer than 2 ids.
    """
    check_rows(batch_size, 0, 1)
    if length < 1:
        raise UserError(f"length is {length}; choose at least 1")
    if len(ids) < 2:
        raise UserError(f"there are {len(ids)} ids, but at least 2 are needed, an input and its target")
    targets = len(ids) - 1
    row = np.arange(batch_size)[:, None]
    starts, ends = row * targets // batch_size, (row + 1) * targets // batch_size
    columns = -(-targets // batch_size)  # of the longest part; other parts are at most one shorter

    def batch(column: int) -> Batch:
        at = starts + column + np.arange(length)[None]
        real = at < ends
        at = np.where(real, at, 0)
        return {
            "input": np.where(real, ids[at], 0).astype(np.int32),
            "target": np.where(real, ids[at + 1], 0).astype(np.int32),
            "weight": real.astype(np.float32),
        }

    return map(batch, range(0, columns, length))


def _check_length(ids: np.ndarray, length: int) -> None:
    if not 1 <= length < len(ids):
        raise UserError(f"length is {length}, but there are {len(ids):,} ids; choose 1 to {len(ids) - 1:,}")


def _compact(ids: np.ndarray) -> np.ndarray:
    """The same ids in the smallest sufficient integer dtype: one byte per character for most texts."""
    smallest = np.promote_types(np.min_scalar_type(ids.min()), np.min_scalar_type(ids.max()))
    return ids.astype(smallest, copy=False)


def _small(starts: np.ndarray, n: int) -> np.ndarray:
    """Positions in n ids, as int32 if that is wide enough."""
    return starts.astype(np.int32) if n < 2**31 else starts


def _gather(length: int, arrays: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and targets from the rows' start positions, with any other arrays of ``rows``; NumPy or JAX arrays."""
    text = arrays["ids"][rows["start"][:, None] + np.arange(length + 1, dtype=rows["start"].dtype)[None]]
    others = {name: value for name, value in rows.items() if name != "start"}
    return {"input": text[:, :-1].astype(np.int32), "target": text[:, 1:].astype(np.int32)} | others
