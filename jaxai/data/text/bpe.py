"""Byte pair encoding (Sennrich et al. 2016, arXiv 1508.07909), using the package ``tokenizers``."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer

from jaxai.errors import UserError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
SPACE = "\u2581"  # marks the start of each word, as in SentencePiece
PIECES = rf"{SPACE}?(\p{{L}}\p{{M}}*)+|{SPACE}?\p{{N}}+|{SPACE}?[^\p{{L}}\p{{N}}{SPACE}]+"  # no token spans two


@dataclasses.dataclass(frozen=True)
class Bpe:
    """A trained encoding: ``tokens`` by id, the four special ones first, and ``merges`` in the order of application."""

    tokens: tuple[str, ...] = dataclasses.field(repr=False)
    merges: tuple[tuple[str, str], ...] = dataclasses.field(repr=False)
    lowercase: bool

    def __post_init__(self) -> None:
        known = set(self.tokens)
        if self.tokens[: len(SPECIAL)] != SPECIAL or len(known) != len(self.tokens):
            raise UserError(f"tokens must be distinct and begin with {', '.join(SPECIAL)}; take train_bpe's")
        if any({left, right, left + right} - known for left, right in self.merges):
            raise UserError("merges must be of tokens and give tokens; take train_bpe's")

    @property
    def size(self) -> int:
        """The number of ids."""
        return len(self.tokens)

    def encode(self, sentences: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        """Encode each sentence, without BOS and EOS (``framed`` adds them); characters not in the vocabulary are UNK.

        The name of a special token inside a sentence is treated as ordinary text.
        """
        encoded = self._tokenizer.encode_batch_fast(list(_marked(sentences, self.lowercase)))
        return [np.array(one.ids, np.int32) for one in encoded]

    def unknown(self, sentence: str) -> list[str]:
        """The sentence's characters that are not in the vocabulary, sorted."""
        if UNK not in self.encode([sentence])[0]:
            return []
        return [character for character in sorted(set(sentence)) if UNK in self.encode([character])[0]]

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """Decode up to the first EOS, without PAD and BOS; UNK becomes U+FFFD.

        ``decode(encode([s])[0])`` is ``s``, lower-cased if ``lowercase`` is set, with leading and trailing whitespace
        removed and every other run of whitespace replaced by one space at most; U+2581 counts as whitespace. Raises
        ``ValueError`` for ids out of range.
        """
        if ids.size and not (ids.min() >= 0 and ids.max() < self.size):
            raise UserError(f"ids are {ids.min()} to {ids.max()}, expected 0 to {self.size - 1}: another vocabulary's")
        end = np.flatnonzero(ids == EOS)
        sentence = ids[: end[0]] if len(end) else ids
        shown = ("", "", "", "\ufffd", *self.tokens[len(SPECIAL) :])
        return "".join(shown[i] for i in sentence.tolist()).replace(SPACE, " ").strip(" ")

    def to_json(self) -> dict[str, Any]:
        """The encoding as JSON values, to be saved with a run."""
        return {
            "tokens": list(self.tokens),
            "merges": [list(pair) for pair in self.merges],
            "lowercase": self.lowercase,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Bpe":
        """Restore an encoding from the output of ``to_json``; ``ValueError`` for anything else."""
        try:
            tokens, merges = tuple(value["tokens"]), tuple((left, right) for left, right in value["merges"])
            return cls(tokens, merges, bool(value["lowercase"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("value is no encoding (tokens, merges, lowercase); take what to_json wrote") from error

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return _tokenizer({token: i for i, token in enumerate(self.tokens)}, list(self.merges))


def train_bpe(sentences: Sequence[str], size: int, *, lowercase: bool) -> Bpe:
    """Train an encoding with at most ``size`` tokens: PAD 0, BOS 1, EOS 2, UNK 3, the characters and the merged pairs.

    The most frequent pair of adjacent tokens is merged into a new token until ``size`` is reached or nothing can be
    merged. Words, numbers and runs of other characters are never merged with each other. For a joint vocabulary of two
    languages, pass the sentences of both. The result does not depend on the order of the sentences or the number of
    threads.

    Raises ``ValueError`` for sentences without a character and for a ``size`` below 4 plus the number of distinct
    characters.

    >>> bpe = train_bpe(["low lower lowest", "new newer newest"], 30, lowercase=True)
    >>> [bpe.tokens[i] for i in bpe.encode(["Lower  news!"])[0]]
    ['▁lower', '▁new', 's', '<unk>']
    """
    marked = list(_marked(sentences, lowercase))
    characters = set().union(*marked)
    least = len(SPECIAL) + len(characters)
    if not characters:
        raise UserError(f"the {len(sentences):,} sentences have no character; give some text to train on")
    if size < least:
        raise UserError(
            f"size is {size}, but the sentences have {len(characters)} different characters, and there are"
            f" {len(SPECIAL)} special tokens; choose at least {least}"
        )
    tokenizer = _tokenizer()
    trainer = BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(marked, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return Bpe(tuple(tokens), tuple((left, right) for left, right in model["merges"]), lowercase)


def framed(sentences: Sequence[Integer[np.ndarray, "_"]]) -> list[Int32[np.ndarray, "_"]]:
    """Add BOS before and EOS after each sentence, as needed to train a decoder.

    >>> framed([np.array([7, 5])])
    [array([1, 7, 5, 2], dtype=int32)]
    """
    return [np.array([BOS, *ids, EOS], np.int32) for ids in sentences]


def _marked(sentences: Sequence[str], lowercase: bool) -> Iterator[str]:
    """Sentences with one `SPACE` before each word and no other whitespace."""
    for sentence in sentences:
        words = (sentence.lower() if lowercase else sentence).replace(SPACE, " ").split()
        yield "".join(SPACE + word for word in words)


def _tokenizer(vocabulary: dict[str, int] | None = None, merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=SPECIAL[UNK]))
    tokenizer.pre_tokenizer = Split(Regex(PIECES), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer
