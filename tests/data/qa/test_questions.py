"""Questions as arrays with slots, vocabularies, endless batches."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxai.data.qa import (
    Encoder,
    answers_text,
    held_out,
    reading_lines,
    task_errors,
)
from jaxai.data.qa.babi import Question
from jaxai.data.qa.questions import Vocabulary, decode, encode, question_batches
from jaxai.data.qa.stories import OPEN_WORDS, load_stories

# Vocabularies


def asked(text: str, answer: str, *facts: str, task: int = 1, support=()) -> Question:
    return Question(task, tuple(tuple(f.split()) for f in facts), tuple(text.split()), answer, tuple(support))


WHERE = asked("where is anna", "park", "anna went to the park", "leo went to the barn", support=[0])


WHAT = asked("what is leo carrying", "book,milk", "leo got the milk", "leo got the book", task=8, support=[0, 1])


OPEN = frozenset({"anna", "leo", "park", "barn"})


def test_a_vocabulary_leaves_out_the_open_words():
    vocabulary = Vocabulary.build([WHERE, WHAT], 3, OPEN)
    assert vocabulary.words == ("book", "carrying", "got", "is", "milk", "the", "to", "went", "what", "where")
    assert vocabulary.answers == ("book,milk",)
    assert (vocabulary.size, vocabulary.labels) == (1 + 3 + 10, 3 + 1)
    assert Vocabulary.build(iter([WHERE]), 0).words == (
        "anna",
        "barn",
        "is",
        "leo",
        "park",
        "the",
        "to",
        "went",
        "where",
    )
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "value is no vocabulary of questions"),
        ({"slots": 1, "words": "abc", "answers": []}, "value is no vocabulary"),
        ({"slots": True, "words": [], "answers": []}, "value is no vocabulary"),
        ({"slots": 1, "words": ["a", 1], "answers": []}, "value is no vocabulary"),
        ({"slots": -1, "words": [], "answers": []}, "slots is -1"),
        ({"slots": 1, "words": ["b", "a"], "answers": []}, "words must be sorted and distinct"),
        ({"slots": 1, "words": [], "answers": ["a", "a"]}, "answers must be sorted and distinct"),
    ],
)
def test_other_values_are_no_vocabulary(value, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_json(value)


# Arrays


def test_arrays_without_slots():
    vocabulary = Vocabulary.build([WHERE, WHAT], 0)
    arrays = encode([WHERE, WHAT], vocabulary, max_facts=3, max_words=6)
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "facts": (np.int32, (2, 3, 6)),
        "question": (np.int32, (2, 6)),
        "fact_count": (np.int32, (2,)),
        "answer": (np.int32, (2,)),
        "support": (bool, (2, 3)),
        "task": (np.int32, (2,)),
    }
    names = ("", *vocabulary.words)
    assert [[" ".join(names[i] for i in row).strip() for row in story] for story in arrays["facts"]] == [
        ["anna went to the park", "leo went to the barn", ""],
        ["leo got the milk", "leo got the book", ""],
    ]
    assert [" ".join(names[i] for i in row).strip() for row in arrays["question"]] == [
        "where is anna",
        "what is leo carrying",
    ]
    assert [vocabulary.answers[label] for label in arrays["answer"]] == ["park", "book,milk"]
    assert arrays["support"].tolist() == [[True, False, False], [True, True, False]]
    assert arrays["fact_count"].tolist() == [2, 2]
    assert arrays["task"].tolist() == [1, 8]
    small = encode([WHERE, WHAT], vocabulary)
    assert small["facts"].shape == (2, 2, 5)
    np.testing.assert_array_equal(small["facts"], arrays["facts"][:, :2, :5])


def test_the_last_facts_are_kept():
    vocabulary = Vocabulary.build([WHERE, WHAT], 0)
    whole, cut = encode([WHERE, WHAT], vocabulary), encode([WHERE, WHAT], vocabulary, max_facts=1)
    np.testing.assert_array_equal(cut["facts"], whole["facts"][:, 1:])
    assert cut["support"].tolist() == [[False], [True]]
    assert cut["fact_count"].tolist() == [1, 1]
    lone = encode([asked("who", "no")], Vocabulary(0, ("who",), ("no",)))
    assert (lone["facts"].shape, lone["fact_count"].tolist()) == ((1, 1, 1), [0])


def test_words_never_seen_become_slots_consistently():
    """Test stories under a training vocabulary: bijective, the answer goes along, other words stay."""
    vocabulary = Vocabulary.build(load_stories("train", 20, seed=0).all, 12, OPEN_WORDS)
    questions = load_stories("test", 20, seed=0).all
    arrays = encode(questions, vocabulary, seed=3)
    names = ("", *(f"<{i}>" for i in range(12)), *vocabulary.words)
    answers = {answer: label for label, answer in enumerate(vocabulary.answers, 12)}
    used = set()
    for row, question in enumerate(questions):
        slots = {}
        lines = [*arrays["facts"][row, : len(question.facts)], arrays["question"][row]]
        for sentence, line in zip((*question.facts, question.question), lines, strict=True):
            assert np.count_nonzero(line) == len(sentence)
            for word, number in zip(sentence, line.tolist(), strict=False):
                if word in vocabulary.words:
                    assert names[number] == word
                else:
                    assert 1 <= number <= 12
                    assert slots.setdefault(word, number) == number
        assert len(set(slots.values())) == len(slots)
        used |= set(slots.values())
        label = int(arrays["answer"][row])
        if question.answer in slots:
            assert label == slots[question.answer] - 1
        else:
            assert label == answers.get(question.answer, -1)
    assert used == set(range(1, 13))
    right = [
        question.answer if label >= 0 else None for question, label in zip(questions, arrays["answer"], strict=True)
    ]
    assert decode(arrays["answer"], questions, arrays, vocabulary) == right
    assert right.count(None) < 25 < len({answer for answer in right if answer in answers})


def test_slots_depend_on_the_seed_and_come_equally_often():
    vocabulary = Vocabulary.build([WHERE], 5, OPEN)
    many = [WHERE] * 2_000
    first, again, other = (encode(many, vocabulary, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["facts"], again["facts"])
    assert (first["facts"] != other["facts"]).any()
    counts = np.bincount(first["answer"], minlength=5)
    assert len(counts) == 5
    assert ((counts - 400) ** 2).sum() / 400 < 18.5  # chi squared with 4 degrees of freedom, one in a thousand
    pairs = np.unique(first["facts"][:, :, 0] @ np.array([6, 1]))  # anna's and leo's slots together
    assert len(pairs) == 5 * 4
    np.testing.assert_array_equal(encode(many[:7], vocabulary, seed=0)["facts"], first["facts"][:7])


def test_answers_that_cannot_be_given():
    vocabulary = Vocabulary.build([WHERE, WHAT], 3, OPEN)
    strange = [dataclasses.replace(WHERE, answer=answer) for answer in ("garden", "park", "book,milk", "milk")]
    labels = encode(strange, Vocabulary.build([WHERE, WHAT], 4, OPEN))["answer"]
    assert labels[[0, 2, 3]].tolist() == [-1, 4, -1]
    assert 0 <= labels[1] < 4
    with pytest.raises(ValueError, match="answer 'garden' is neither in vocabulary nor a word of its story"):
        question_batches(strange[:1], Vocabulary.build([WHERE], 4, OPEN), 2, seed=0)
    with pytest.raises(
        ValueError, match=r"slots is 3, but question 1 has 4 words .* \(anna, park, leo, barn\); choose"
    ):
        encode([WHAT, WHERE], vocabulary)


def test_a_label_of_no_word_is_none():
    vocabulary = Vocabulary.build([WHERE, WHAT], 6, OPEN)
    arrays = encode([WHERE], vocabulary)
    labels = np.arange(vocabulary.labels, dtype=np.int32)
    *slots, last = [decode(labels[i : i + 1], [WHERE], arrays, vocabulary)[0] for i in labels]
    assert Counter(slots) == Counter({None: 2, "anna": 1, "barn": 1, "leo": 1, "park": 1})
    assert last == "book,milk"
    assert slots[arrays["answer"][0]] == "park"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": []}, "questions is empty"),
        ({"max_facts": 0}, "max_facts is 0; choose at least 1"),
        ({"max_words": 0}, "max_words is 0; choose at least 1"),
        ({"max_words": 4}, "max_words is 4, but question 1 has a sentence of 5 words; raise it"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments(change, message):
    options = {"questions": [WHAT, WHERE], "vocabulary": Vocabulary.build([WHAT, WHERE], 0)} | change
    with pytest.raises(ValueError, match=message):
        encode(options.pop("questions"), options.pop("vocabulary"), **options)
    options = {"questions": [WHAT, WHERE], "vocabulary": Vocabulary.build([WHAT, WHERE], 0), "batch_size": 1, "seed": 0}
    with pytest.raises(ValueError, match=message):
        question_batches(**(options | change))


# Batches


@pytest.fixture(scope="module")
def own() -> tuple[tuple[Question, ...], Vocabulary]:
    questions = load_stories("train", 4, seed=0).all
    return questions, Vocabulary.build(questions, 12, OPEN_WORDS)


def steps(iterator, count: int) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(count)]


def assert_equal(first: list[dict], second: list[dict]) -> None:
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], strict=True)


def test_every_question_comes_equally_often_with_other_slots():
    numbered = [dataclasses.replace(WHERE, task=number) for number in range(10)]
    vocabulary = Vocabulary.build(numbered, 6, OPEN)
    batches = steps(question_batches(numbered, vocabulary, 4, seed=0), 50)
    assert {name: (array.dtype, array.shape) for name, array in batches[0].items()} == {
        "facts": (np.int32, (4, 2, 5)),
        "question": (np.int32, (4, 5)),
        "fact_count": (np.int32, (4,)),
        "answer": (np.int32, (4,)),
        "support": (bool, (4, 2)),
        "task": (np.int32, (4,)),
    }
    assert np.bincount(np.concatenate([batch["task"] for batch in batches])).tolist() == [20] * 10
    assert len({batch["task"].tobytes() for batch in batches}) == 50
    drawn = [batch["facts"][batch["task"] == 3] for batch in batches]
    assert len({facts.tobytes() for facts in drawn if facts.size}) > 10
    for batch in batches:
        np.testing.assert_array_equal(batch["answer"] + 1, batch["facts"][:, 0, 4])
        np.testing.assert_array_equal(batch["question"][:, 2], batch["facts"][:, 0, 0])


def test_stories_of_about_one_length_share_a_batch(own):
    questions, vocabulary = own
    n = len(questions)
    batches = steps(question_batches(questions, vocabulary, 4, seed=0, shapes=3), n)
    sizes = {batch["facts"].shape[1] for batch in batches}
    assert len(sizes) == 3
    assert max(sizes) == max(len(question.facts) for question in questions)
    assert np.bincount(np.concatenate([batch["task"] for batch in batches]), minlength=12)[1:].sum() == 4 * n
    for batch in batches:
        assert batch["support"].shape == batch["facts"].shape[:2]
        shorter = max((size for size in sizes if size < batch["facts"].shape[1]), default=0)
        assert (batch["fact_count"] > shorter).all()  # each is padded to the least size that it fits in
        real = (batch["facts"] != 0).any(-1)
        np.testing.assert_array_equal(real.sum(-1), batch["fact_count"])


def test_a_batch_may_be_larger_than_the_data(own):
    questions, vocabulary = own
    batch = next(question_batches(questions, vocabulary, 3 * len(questions), seed=0))
    assert np.bincount(batch["task"])[1:].tolist() == [12] * 11


def test_order_and_slots_depend_on_the_seed_alone(own):
    questions, vocabulary = own
    first, again, other = (steps(question_batches(questions, vocabulary, 8, seed=seed), 6) for seed in (3, 3, 4))
    assert_equal(first, again)
    assert any((a["task"] != b["task"]).any() for a, b in zip(first, other, strict=True))


def test_batches_are_the_same_in_every_version():
    """A resumed run relies on it."""
    numbered = [dataclasses.replace(WHERE, task=number) for number in range(5)]
    batches = steps(question_batches(numbered, Vocabulary.build(numbered, 6, OPEN), 3, seed=1), 2)
    assert [batch["task"].tolist() for batch in batches] == [[3, 4, 1], [2, 3, 1]]
    assert [batch["answer"].tolist() for batch in batches] == [[5, 4, 2], [0, 4, 5]]


@given(before=st.integers(0, 20))
def test_a_restored_iterator_continues_exactly(own, before):
    questions, vocabulary = own
    iterator = question_batches(questions, vocabulary, 8, seed=9)
    steps(iterator, before)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_index": before}
    expected = steps(iterator, 3)
    fresh = question_batches(questions, vocabulary, 8, seed=9)
    fresh.set_state(state)
    assert_equal(steps(fresh, 3), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(own, count):
    questions, vocabulary = own
    whole = steps(question_batches(questions, vocabulary, 8, seed=2), 8)
    parts = [
        steps(question_batches(questions, vocabulary, 8, seed=2, process_index=i, process_count=count), 8)
        for i in range(count)
    ]
    together = [{k: np.concatenate([part[k] for part in row]) for k in row[0]} for row in zip(*parts, strict=True)]
    assert_equal(together, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 3, "process_count": 2}, "batch_size 3 is not divisible by process_count 2"),
        ({"process_index": 1}, "process_index is 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_batches(own, change, message):
    questions, vocabulary = own
    with pytest.raises(ValueError, match=message):
        question_batches(questions, vocabulary, **({"batch_size": 2, "seed": 0} | change))


def test_errors_by_task():
    stories = load_stories("test", 4, 0)
    task = np.repeat(np.arange(1, 12, dtype=np.int32), 4)
    wrong = np.zeros(44, bool)
    wrong[:3] = True
    found = task_errors(stories, wrong, task)
    assert found["test_errors"]["1 one-supporting-fact"] == 0.75
    assert found["mean_error"] == pytest.approx(0.75 / 11)
    assert found["failed"] == 1


def test_a_tenth_of_each_task_validates():
    train, val = held_out(load_stories("train", 20, 0))
    assert [len(train), len(val)] == [198, 22]
    assert {question.task for question in val} == set(range(1, 12))


def test_an_encoder_keeps_the_sizes_of_all_questions():
    train, test = load_stories("train", 5, 0), load_stories("test", 5, 0)
    encoder = Encoder.fit(train, test, slots=10, max_facts=4)
    every = *train.all, *test.all
    assert encoder.max_facts == 4
    assert encoder.max_words == max(len(line) for q in every for line in (*q.facts, q.question))
    assert Encoder.from_json(encoder.to_json()) == encoder
    arrays = encoder.encode(test.all)
    assert arrays["facts"].shape == (55, 4, encoder.max_words)
    whole = Encoder.fit(train, test, slots=10, max_facts=999)
    assert whole.max_facts == max(len(q.facts) for q in every)
    batch = next(whole.batches(train.all, 8, seed=0))
    assert batch["question"].shape == (8, encoder.max_words)


def test_stories_to_read():
    (question,) = load_stories("test", 1, 0).only([1]).all
    stories = load_stories("test", 1, 0)
    encoder = Encoder.fit(stories, stories, slots=10, max_facts=len(question.facts))
    lines = reading_lines(question, encoder.encode([question]), "nowhere")
    assert lines[0] == f"{' '.join(question.question)}? nowhere ({question.answer})"
    marked = [len(question.facts) - row for row, line in enumerate(lines[1:], 1) if line.startswith("* ")]
    assert sorted(marked) == sorted(question.support)
    assert lines[1].removeprefix("* ") == " ".join(question.facts[-1])
    assert answers_text([question], [None]).splitlines()[-1].endswith(f"? {question.answer} > None")
