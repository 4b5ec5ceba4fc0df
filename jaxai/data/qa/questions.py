"""Encode questions as arrays for a network, with out-of-vocabulary words replaced by anonymous slots.

vocabulary = Vocabulary.build(train.all, slots=12, open_words=OPEN_WORDS)
batches = question_batches(train.all, vocabulary, 64, max_facts=20, seed=0)
test = encode(test.all, vocabulary, max_facts=20)
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int32, UInt64

from jaxai.data.buckets import grouped, length_groups
from jaxai.data.pipeline import check_rows, endless, own_rows
from jaxai.data.qa.babi import Question, Questions
from jaxai.data.random import stream
from jaxai.errors import UserError

Batch = dict[
    str,
    Int32[np.ndarray, "B S width"] | Int32[np.ndarray, "B width"] | Int32[np.ndarray, " B"] | Bool[np.ndarray, "B S"],
]

PAD = 0


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A mapping from words to ids and from answers to labels.

    Ids: 0 padding, 1 ... ``slots`` the slots, then ``words``. Labels: 0 ... ``slots`` - 1 the slots, then ``answers``.
    """

    slots: int
    words: tuple[str, ...]
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.slots < 0:
            raise UserError(f"slots is {self.slots}; choose at least 0")
        for name, values in (("words", self.words), ("answers", self.answers)):
            if list(values) != sorted(set(values)):
                raise UserError(f"{name} must be sorted and distinct; take Vocabulary.build(questions, slots)")

    @classmethod
    def build(
        cls, questions: Iterable[Question], slots: int, open_words: frozenset[str] | set[str] = frozenset()
    ) -> "Vocabulary":
        """Collect the words and answers of training questions, without ``open_words``, which always become slots."""
        words: set[str] = set()
        answers: set[str] = set()
        for question in questions:
            words.update(question.question, *question.facts)
            answers.add(question.answer)
        return cls(slots, tuple(sorted(words - open_words)), tuple(sorted(answers - open_words)))

    @property
    def size(self) -> int:
        """The number of ids."""
        return 1 + self.slots + len(self.words)

    @property
    def labels(self) -> int:
        """The number of labels."""
        return self.slots + len(self.answers)

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as JSON values, to be saved with a run."""
        return {"slots": self.slots, "words": list(self.words), "answers": list(self.answers)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Vocabulary":
        """Restore a vocabulary from the output of ``to_json``; ``ValueError`` for anything else."""
        lists = [value.get(name) for name in ("words", "answers")] if isinstance(value, dict) else [None]
        strings = all(isinstance(part, list) and all(isinstance(word, str) for word in part) for part in lists)
        if not strings or type(value.get("slots")) is not int:
            raise UserError("value is no vocabulary of questions (slots, words, answers); take what to_json wrote")
        return cls(value["slots"], tuple(value["words"]), tuple(value["answers"]))


def encode(
    questions: Sequence[Question],
    vocabulary: Vocabulary,
    *,
    max_facts: int | None = None,
    max_words: int | None = None,
    seed: int = 0,
) -> Batch:
    """Encode questions as arrays: ``facts`` int32 [B, S, width], ``question`` int32 [B, width], padded with 0.

    Also ``fact_count``, ``answer`` and ``task`` int32 [B]; ``support`` bool [B, S], the facts that imply the answer.
    The last ``max_facts`` facts are kept; S and width are ``max_facts`` and ``max_words``, by default the largest that
    occur. A word that is not in the vocabulary becomes a slot, the same one throughout the example, drawn from ``seed``
    without replacement; so does an answer that is such a word (Hermann et al. 2015, arXiv:1506.03340). An answer that
    is neither a label nor a word of its example is -1, which no prediction equals.

    Raises ``ValueError`` for no questions, an example with more unknown words than slots or with a sentence of more
    than ``max_words`` words, and sizes below 1.
    """
    check_rows(1, 0, 1, seed)
    arrays = _arrays(questions, vocabulary, max_facts, max_words)
    return _draw_slots(arrays, vocabulary, stream((len(questions), vocabulary.slots), seed))


def question_batches(
    questions: Sequence[Question],
    vocabulary: Vocabulary,
    batch_size: int,
    *,
    seed: int,
    max_facts: int | None = None,
    max_words: int | None = None,
    shapes: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator of batches in the format of ``encode``, with slots redrawn for every batch.

    Stories are batched by their number of facts, so that S has at most ``shapes`` values. The order is that of
    ``jaxai.data.buckets.grouped``; state and processes are handled as in ``jaxai.data.pipeline.batches``.

    Raises ``ValueError`` as ``encode`` does, for an answer of -1, a batch size below 1 or not divisible by
    ``process_count``, a process index outside 0 ... process_count - 1, and a negative seed.
    """
    check_rows(batch_size, process_index, process_count, seed)
    arrays = _arrays(questions, vocabulary, max_facts, max_words)
    if arrays["answer"].min() < 0:
        strange = questions[int(arrays["answer"].argmin())].answer
        raise UserError(f"answer {strange!r} is neither in vocabulary nor a word of its story; take Vocabulary.build")
    counts = arrays["fact_count"]
    members = [
        np.flatnonzero((low <= counts) & (counts <= high))
        for low, high in length_groups(counts, counts[:, None], shapes)
    ]
    mine = own_rows(batch_size, process_index, process_count)
    rows_of = grouped([(len(rows), batch_size) for rows in members], seed=seed)

    def batch(index: int) -> Batch:
        group, places = rows_of(index)
        rows, longest = members[group][places][mine], max(1, counts[members[group]].max())
        raw = stream((batch_size, vocabulary.slots), seed, index, 1)[mine]  # 1: apart from the orders' stream
        parts = {name: array[rows] for name, array in arrays.items()}
        shorter = {name: parts[name][:, :longest] for name in ("facts", "support")}
        return _draw_slots(parts | shorter, vocabulary, raw)

    return endless(batch)


def decode(
    labels: Int32[np.ndarray, " B"], questions: Sequence[Question], arrays: Batch, vocabulary: Vocabulary
) -> list[str | None]:
    """Decode predicted labels to answers: strings, or ``None`` for -1 and for a slot without a word.

    ``arrays`` is the result of ``encode`` for the same questions, which determines the word of each slot.
    """
    result = []
    for row, (label, question) in enumerate(zip(labels.tolist(), questions, strict=True)):
        if label >= vocabulary.slots:
            result.append(vocabulary.answers[label - vocabulary.slots])
            continue
        count = int(arrays["fact_count"][row])
        sentences = [*question.facts[len(question.facts) - count :], question.question]
        ids = [*arrays["facts"][row, :count], arrays["question"][row]]
        words = {i: w for ws, line in zip(sentences, ids, strict=True) for w, i in zip(ws, line.tolist(), strict=False)}
        result.append(words.get(label + 1))
    return result


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A vocabulary and the sizes of a network's inputs, with `encode`, `decode` and `question_batches` for one run."""

    vocabulary: Vocabulary
    max_facts: int
    max_words: int

    @classmethod
    def fit(cls, train: Questions, test: Questions, *, slots: int, max_facts: int) -> "Encoder":
        """Build the vocabulary from the training questions, and choose sizes that fit both splits.

        Stories are limited to their last ``max_facts`` facts.
        """
        every = *train.all, *test.all
        longest = max(len(question.facts) for question in every)
        widest = max(len(line) for question in every for line in (*question.facts, question.question))
        return cls(Vocabulary.build(train.all, slots, train.open_words), min(max_facts, longest), widest)

    @property
    def sizes(self) -> dict[str, Any]:
        return {"max_facts": self.max_facts, "max_words": self.max_words}

    def encode(self, questions: Sequence[Question]) -> Batch:
        """Call `encode` with the vocabulary and sizes of this encoder."""
        return encode(questions, self.vocabulary, **self.sizes)

    def decode(self, labels: Int32[np.ndarray, " B"], questions: Sequence[Question], arrays: Batch) -> list[str | None]:
        """Call `decode` with the vocabulary of this encoder."""
        return decode(labels, questions, arrays, self.vocabulary)

    def batches(self, questions: Sequence[Question], batch_size: int, **options: Any) -> grain.DatasetIterator:
        """Call `question_batches` with the vocabulary and sizes of this encoder."""
        return question_batches(questions, self.vocabulary, batch_size, **self.sizes, **options)

    def to_json(self) -> dict[str, Any]:
        """The encoder as JSON values, to be saved with a run."""
        return self.vocabulary.to_json() | self.sizes

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Encoder":
        """Restore an encoder from ``to_json``; ``ValueError``, ``KeyError`` or ``TypeError`` for anything else."""
        return cls(Vocabulary.from_json(value), int(value["max_facts"]), int(value["max_words"]))


def story_of(arrays: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The network's inputs among the arrays of `encode`: facts, number of facts, question."""
    return arrays["facts"], arrays["fact_count"], arrays["question"]


def reading_lines(question: Question, arrays: Batch, answer: str | None) -> list[str]:
    """The question with the predicted and the correct answer, then its facts, latest first; * marks supporting facts.

    ``arrays`` is the result of ``encode`` for this question alone; facts that it dropped are omitted here too.
    """
    count = int(arrays["fact_count"][0])
    facts = zip(arrays["support"][0, :count], question.facts[len(question.facts) - count :], strict=True)
    marked = ["* " * bool(needed) + " ".join(fact) for needed, fact in facts]
    return [f"{' '.join(question.question)}? {answer} ({question.answer})", *marked[::-1]]


def task_errors(questions: Questions, wrong: Bool[np.ndarray, " n"], task: Int32[np.ndarray, " n"]) -> dict[str, Any]:
    """The error rate of each task, ``test_errors``; ``mean_error``; and ``failed``, the number of tasks above 5 %.

    ``wrong`` and ``task`` have an element for each question. The limit of 5 % is bAbI's.
    """
    found = {f"{number} {questions.titles[number]}": float(wrong[task == number].mean()) for number in questions.tasks}
    values = list(found.values())
    return {"test_errors": found, "mean_error": float(np.mean(values)), "failed": sum(x > 0.05 for x in values)}


def answers_text(questions: Sequence[Question], said: Sequence[str | None]) -> str:
    """Format stories and questions as text, each with the correct and the predicted answer."""
    lines = []
    for question, answer in zip(questions, said, strict=True):
        lines += [*map(" ".join, question.facts), f"{' '.join(question.question)}? {question.answer} > {answer}", ""]
    return "\n".join(lines)


def _arrays(
    questions: Sequence[Question], vocabulary: Vocabulary, max_facts: int | None, max_words: int | None
) -> Batch:
    """The arrays of ``encode``, with slots 1, 2, ... in the order in which an example's unknown words appear."""
    if not questions:
        raise UserError("questions is empty; give at least 1")
    for name, size in (("max_facts", max_facts), ("max_words", max_words)):
        if size is not None and size < 1:
            raise UserError(f"{name} is {size}; choose at least 1")
    rows = max_facts or max(1, max(len(question.facts) for question in questions))
    table = {word: i for i, word in enumerate(vocabulary.words, 1 + vocabulary.slots)}
    labels = {answer: i for i, answer in enumerate(vocabulary.answers, vocabulary.slots)}
    ids: list[list[int]] = []
    lengths = np.zeros((len(questions), rows + 1), np.int32)
    answer = np.zeros(len(questions), np.int32)
    support = np.zeros((len(questions), rows), bool)
    for row, question in enumerate(questions):
        facts = question.facts[-rows:]
        slots: dict[str, int] = {}
        sentences = [
            [table.get(word) or slots.setdefault(word, len(slots) + 1) for word in sentence]
            for sentence in (*facts, question.question)
        ]
        _check_slots(slots, row, vocabulary.slots)
        ids += sentences
        *lengths[row, : len(facts)], lengths[row, -1] = map(len, sentences)
        answer[row] = labels.get(question.answer, slots.get(question.answer, 0) - 1)
        dropped = len(question.facts) - len(facts)
        support[row, [index - dropped for index in question.support if index >= dropped]] = True
    padded = _padded(ids, lengths, max_words)
    return {
        "facts": np.ascontiguousarray(padded[:, :-1]),
        "question": np.ascontiguousarray(padded[:, -1]),
        "fact_count": np.array([min(len(question.facts), rows) for question in questions], np.int32),
        "answer": answer,
        "support": support,
        "task": np.array([question.task for question in questions], np.int32),
    }


def _check_slots(unknown: dict[str, int], row: int, slots: int) -> None:
    if len(unknown) > slots:
        words = ", ".join(list(unknown)[:5])
        raise UserError(
            f"slots is {slots}, but question {row} has {len(unknown)} words that are not in the vocabulary ({words}"
            f"{', ...' if len(unknown) > 5 else ''}); choose more"
        )


def _padded(ids: list[list[int]], lengths: np.ndarray, max_words: int | None) -> Int32[np.ndarray, "B sentences width"]:
    """Pad the concatenated sentences; ``lengths`` has one entry per row, 0 for an empty one."""
    width = max_words or int(lengths.max())
    if lengths.max() > width:
        row = int(lengths.max(axis=1).argmax())
        raise UserError(f"max_words is {width}, but question {row} has a sentence of {lengths.max()} words; raise it")
    result = np.full((*lengths.shape, width), PAD, np.int32)
    result[np.arange(width) < lengths[..., None]] = np.fromiter(itertools.chain.from_iterable(ids), np.int32)
    return result


def _draw_slots(arrays: Batch, vocabulary: Vocabulary, raw: UInt64[np.ndarray, "B slots"]) -> Batch:
    """Permute the slots of each example by the order of its random numbers."""
    n, slots = raw.shape
    ids = np.tile(np.arange(vocabulary.size, dtype=np.int32), (n, 1))
    ids[:, 1 : slots + 1] = raw.argsort(axis=1, kind="stable") + 1
    starts = np.arange(n) * vocabulary.size
    facts, question, answer = arrays["facts"], arrays["question"], arrays["answer"]
    slot = ids[np.arange(n), np.clip(answer + 1, 0, slots)] - 1
    return arrays | {
        "facts": ids.ravel()[facts + starts[:, None, None]],
        "question": ids.ravel()[question + starts[:, None]],
        "answer": np.where((answer >= 0) & (answer < slots), slot, answer).astype(np.int32),
    }
