"""Byte pair encoding (Sennrich et al. 2016, arXiv 1508.07909), trained and applied by the package tokenizers."""

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
SPACE = "\u2581"  # stands before each word, as in SentencePiece
PIECES = rf"{SPACE}?(\p{{L}}\p{{M}}*)+|{SPACE}?\p{{N}}+|{SPACE}?[^\p{{L}}\p{{N}}{SPACE}]+"  # no token spans two


@dataclasses.dataclass(frozen=True)
class Bpe:
    """A trained encoding: ``tokens`` by id, the four special ones first, and ``merges`` in the order they are made."""

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
        """How many different ids there are."""
        return len(self.tokens)

    def encode(self, sentences: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        """Each sentence's ids, without BOS and EOS (``framed`` adds them); characters never seen in training are UNK.

        A special token's name in a sentence is text as any other.
        """
        encoded = self._tokenizer.encode_batch_fast(list(_marked(sentences, self.lowercase)))
        return [np.array(one.ids, np.int32) for one in encoded]

    def unknown(self, sentence: str) -> list[str]:
        """The sentence's characters that were never seen in training, sorted."""
        if UNK not in self.encode([sentence])[0]:
            return []
        return [character for character in sorted(set(sentence)) if UNK in self.encode([character])[0]]

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """The sentence up to the first EOS, without PAD and BOS; UNK becomes U+FFFD.

        ``decode(encode([s])[0])`` is ``s`` (lower-cased where ``lowercase``) with every run of whitespace, also at the
        ends, made one space or none; U+2581 counts as whitespace. Raises ``ValueError`` for ids out of range.
        """
        if ids.size and not (ids.min() >= 0 and ids.max() < self.size):
            raise UserError(f"ids are {ids.min()} to {ids.max()}, expected 0 to {self.size - 1}: another vocabulary's")
        end = np.flatnonzero(ids == EOS)
        sentence = ids[: end[0]] if len(end) else ids
        shown = ("", "", "", "\ufffd", *self.tokens[len(SPECIAL) :])
        return "".join(shown[i] for i in sentence.tolist()).replace(SPACE, " ").strip(" ")

    def to_json(self) -> dict[str, Any]:
        """JSON values, so that a finished run can translate."""
        return {
            "tokens": list(self.tokens),
            "merges": [list(pair) for pair in self.merges],
            "lowercase": self.lowercase,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Bpe":
        """The encoding that ``to_json`` wrote; ``ValueError`` for anything else."""
        try:
            tokens, merges = tuple(value["tokens"]), tuple((left, right) for left, right in value["merges"])
            return cls(tokens, merges, bool(value["lowercase"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("value is no encoding (tokens, merges, lowercase); take what to_json wrote") from error

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return _tokenizer({token: i for i, token in enumerate(self.tokens)}, list(self.merges))


def train_bpe(sentences: Sequence[str], size: int, *, lowercase: bool) -> Bpe:
    """An encoding with at most ``size`` tokens: PAD 0, BOS 1, EOS 2, UNK 3, the characters, and the merges of pairs.

    The most frequent pair of neighbouring tokens becomes a token, again and again; words, numbers and runs of other
    characters are never merged with each other. For one vocabulary of two languages give the sentences of both. The
    same sentences give the same encoding, in any order of them and on any number of threads. Fewer than ``size`` tokens
    come out only where nothing is left to merge.

    Raises ``ValueError`` for sentences without a character and for a ``size`` below 4 plus the different characters.

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
    """Each sentence with BOS before and EOS behind it, as a decoder is trained on it.

    >>> framed([np.array([7, 5])])
    [array([1, 7, 5, 2], dtype=int32)]
    """
    return [np.array([BOS, *ids, EOS], np.int32) for ids in sentences]


def _marked(sentences: Sequence[str], lowercase: bool) -> Iterator[str]:
    """Sentences with one mark before each word and no other whitespace."""
    for sentence in sentences:
        words = (sentence.lower() if lowercase else sentence).replace(SPACE, " ").split()
        yield "".join(SPACE + word for word in words)


def _tokenizer(vocabulary: dict[str, int] | None = None, merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=SPECIAL[UNK]))
    tokenizer.pre_tokenizer = Split(Regex(PIECES), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer
