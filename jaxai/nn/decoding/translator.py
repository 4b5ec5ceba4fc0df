"""Batched translation by beam search; sentences are grouped by length into few shapes."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int, Int32

from jaxai.attention import AttentionStats
from jaxai.nn.decoding.beam import translate
from jaxai.nn.transformer import apply_with_statistics
from jaxai.nn.transformer_models import EncoderDecoder
from jaxai.typing import Array, PyTree

Sentences = Sequence[Int[np.ndarray, " _"]]

ROWS = 64  # sentences per batch


@runtime_checkable
class Tokenizer(Protocol):
    """Conversion of sentences to tokens and back, such as `jaxai.data.text.Bpe`; ``decode`` stops at the end token."""

    def encode(self, sentences: Sequence[str]) -> list[np.ndarray]: ...

    def decode(self, ids: np.ndarray) -> str: ...


@dataclasses.dataclass(frozen=True)
class Translator[TokenizerT: Tokenizer]:
    """A trained network as a function from sentences to their best translations by beam search.

    Targets begin with the token ``begin`` and end with ``end``; ``beams`` and ``length_penalty`` as in `beam_search`.
    """

    network: EncoderDecoder
    params: PyTree
    tokenizer: TokenizerT
    begin: int
    end: int
    beams: int
    length_penalty: float

    @functools.cached_property
    def search(self) -> Callable[..., tuple[Array, Array]]:
        """`translate` with this network and these options, compiled for each shape of sources."""
        how = {"begin": self.begin, "end": self.end, "beams": self.beams, "length_penalty": self.length_penalty}
        return jax.jit(partial(translate, self.network, **how), static_argnames="max_length")

    def __call__(self, sentences: Sequence[str]) -> list[str]:
        """Translate each sentence; the translation of a sentence without tokens is empty.

        A translation has at most 1.5 S + 8 tokens, S the padded source length of its batch (see `chunks`).
        """
        ids = self.tokenizer.encode(sentences)
        found = [""] * len(ids)
        for rows, source, lengths in chunks(ids):
            longest = source.shape[1] * 3 // 2 + 8
            best = np.asarray(self.search(self.params, source, lengths, max_length=longest)[0][:, 0])
            for place, row in enumerate(rows):
                found[row] = self.tokenizer.decode(best[place])
        return found

    def attention(
        self, source: str, target: str, *, most: int
    ) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " S"], AttentionStats]:
        """The tokens of target and source, at most ``most`` of each, and the decoder's attention to the source.

        Row t of the attention weights belongs to the step that predicts target token t.
        """
        (tokens,), (ids,) = self.tokenizer.encode([source]), self.tokenizer.encode([target])
        tokens, written = tokens[:most], np.array([self.begin, *ids, self.end], np.int32)[: most + 1]
        _, statistics = apply_with_statistics(self.network, self.params, tokens[None], written[None, :-1])
        return written[1:], tokens, statistics["cross_attention"]


def chunks(
    sentences: Sentences,
) -> Iterator[tuple[list[int], Int32[np.ndarray, "B S"], Int32[np.ndarray, " B"]]]:
    """Yield batches of up to 64 non-empty sentences of similar length: their indices, tokens and lengths.

    To limit the number of shapes, S is a multiple of 16, and the last batch is filled up with copies of its first
    sentence, which are not among the indices.
    """
    order = sorted((row for row in range(len(sentences)) if len(sentences[row])), key=lambda row: len(sentences[row]))
    for first in range(0, len(order), ROWS):
        rows = order[first : first + ROWS]
        longest = len(sentences[rows[-1]])
        filled = [sentences[row] for row in rows + rows[:1] * (min(ROWS, len(order)) - len(rows))]
        source = np.zeros((len(filled), -(-longest // 16) * 16), np.int32)
        for place, sentence in zip(source, filled, strict=True):
            place[: len(sentence)] = sentence
        yield rows, source, np.array([len(sentence) for sentence in filled], np.int32)
