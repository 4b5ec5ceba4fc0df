"""The grammar: answers and support against an interpreter that reads the sentences, balance, held-out words."""

import functools
import logging
from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxai.data.qa import stories as stories
from jaxai.data.qa.babi import Question, load_babi, parse, to_lines, write_babi
from jaxai.data.qa.stories import (
    MOST_NAMES,
    MOST_PLACES,
    OPEN_WORDS,
    STORY_TASKS,
    TEST_NAMES,
    TEST_PLACES,
    TRAIN_NAMES,
    TRAIN_PLACES,
    generate,
    load_stories,
)

COUNT = 600
WALK = {"went", "moved", "journeyed", "travelled"}
TAKE, DROP = {"got", "took", "grabbed", "picked"}, {"dropped", "left", "discarded", "put"}
PRONOUNS = {"he", "she", "they"}
OFFSET = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
OFFSET |= {"above": (0, 1), "below": (0, -1), "right": (1, 0), "left": (-1, 0)}
SINGULAR = {"cats": "cat", "foxes": "fox", "lions": "lion", "mice": "mouse", "sheep": "sheep", "wolves": "wolf"}


@functools.cache
def made(task: str, count: int = COUNT, seed: int = 0) -> list[Question]:
    return generate(task, count, seed, names=TRAIN_NAMES, places=TRAIN_PLACES)


# An interpreter that knows nothing of the grammar but the words


class Told:
    """The state of the world after facts that were read one by one."""

    def __init__(self, facts) -> None:
        self.where, self.holder, self.spot = {}, {}, {}
        self.been = defaultdict(list)  # object -> places, one after the other
        self.handled = set()
        self.absent = {}
        self.kinds, self.fears = {}, {}
        self.relations = []
        self.speakers = []
        for fact in facts:
            self.read(list(fact))

    def read(self, words: list[str]) -> None:
        if words[0] == "the":
            self.relate(words)
        elif WALK & set(words):
            self.walk(words)
        elif (TAKE | DROP) & set(words):
            self.handle(words)
        elif "afraid" in words:
            self.fears[SINGULAR[words[0]]] = SINGULAR[words[-1]]
        elif words[-2] == "a":
            self.kinds[words[0]] = words[-1]
        elif {"not", "longer"} & set(words):
            self.where.pop(words[0], None)
            self.absent[words[0]] = words[-1]
        else:
            self.go(words[0], words[-1])

    def walk(self, words: list[str]) -> None:
        if not PRONOUNS & set(words):
            before = words[: next(i for i, word in enumerate(words) if word in WALK)]
            self.speakers = [word for word in before if word != "and"]
        for person in self.speakers:
            self.go(person, words[-1])

    def go(self, person: str, place: str) -> None:
        self.absent.pop(person, None)
        self.where[person] = place
        for thing, holder in self.holder.items():
            if holder == person:
                self.been[thing].append(place)

    def handle(self, words: list[str]) -> None:
        person, thing = words[0], words[words.index("the") + 1]
        self.handled.add(person)
        if TAKE & set(words):
            assert thing not in self.holder
            here = self.where.get(person)
            assert self.spot.pop(thing, here) == here
            self.holder[thing] = person
            self.been[thing] = self.been[thing] or [here]
        else:
            self.holder.pop(thing, None)
            self.spot[thing] = self.where.get(person)

    def relate(self, words: list[str]) -> None:
        middle = words.index("is")
        last = len(words) - words[::-1].index("the")
        first, second = " ".join(words[1:middle]), " ".join(words[last:])
        side = next(word for word in words[middle:last] if word in OFFSET)
        self.relations.append((first, OFFSET[side], second))

    def steps(self, start: str) -> list[tuple[str, tuple[int, int]]]:
        forward = [(a, offset) for a, offset, b in self.relations if b == start]
        return forward + [(b, (-x, -y)) for a, (x, y), b in self.relations if a == start]

    def offsets(self, start: str) -> dict[str, tuple[int, int]]:
        found, left = {start: (0, 0)}, [start]
        while left:
            here = left.pop()
            for there, step in self.steps(here):
                if there not in found:
                    found[there] = found[here][0] + step[0], found[here][1] + step[1]
                    left.append(there)
        return found

    def carried(self, person: str) -> list[str]:
        return sorted(thing for thing, holder in self.holder.items() if holder == person)


def where_is(told: Told, words: tuple[str, ...]) -> str | None:
    thing = words[-1]
    if words[-2] == "the":
        holder = told.holder.get(thing)
        return told.where.get(holder) if holder else told.spot.get(thing)
    return told.where.get(thing)


def where_was(told: Told, words: tuple[str, ...]) -> str | None:
    been, place = told.been[words[3]], words[-1]
    if been.count(place) > 1:
        return "ambiguous"
    return been[been.index(place) - 1] if place in been[1:] else None


def neighbour(told: Told, words: tuple[str, ...]) -> str | None:
    side = next(word for word in words if word in OFFSET)
    backwards = words[-1] == "of"
    place, (x, y) = words[3] if backwards else words[-1], OFFSET[side]
    wanted = (-x, -y) if backwards else (x, y)
    hits = [there for there, step in told.steps(place) if step == wanted]
    assert len(hits) < 2
    return hits[0] if hits else None


def beside(told: Told, words: tuple[str, ...]) -> str | None:
    offset = told.offsets(" ".join(words[-2:])).get(" ".join(words[2:4]))
    if offset is None:
        return None
    x, y = OFFSET[next(word for word in words if word in OFFSET)]
    along = x * offset[0] + y * offset[1]
    assert along
    return "yes" if along > 0 else "no"


def present(told: Told, words: tuple[str, ...]) -> str | None:
    person, place = words[1], words[-1]
    if person in told.where:
        return "yes" if told.where[person] == place else "no"
    return "no" if told.absent.get(person) == place else None


def path(told: Told, words: tuple[str, ...]) -> str | None:
    start, end = words[6], words[-1]
    letters = {offset: side[0] for side, offset in OFFSET.items() if side in ("north", "south", "east", "west")}
    ways = [f"{letters[p]},{letters[q]}" for mid, p in told.steps(start) for at, q in told.steps(mid) if at == end]
    assert len(ways) < 2
    return ways[0] if ways else None


def count(told: Told, words: tuple[str, ...]) -> str | None:
    person = words[4]
    return ("none", "one", "two", "three")[len(told.carried(person))] if person in told.handled else None


def listed(told: Told, words: tuple[str, ...]) -> str | None:
    return (",".join(told.carried(words[2])) or "nothing") if words[2] in told.handled else None


def afraid(told: Told, words: tuple[str, ...]) -> str | None:
    return told.fears.get(told.kinds.get(words[2]))


SOLVERS = {
    "one-supporting-fact": where_is,
    "two-supporting-facts": where_is,
    "three-supporting-facts": where_was,
    "two-argument-relations": neighbour,
    "counting": count,
    "lists": listed,
    "negation": present,
    "coreference": where_is,
    "deduction": afraid,
    "positions": beside,
    "path-finding": path,
}
SUPPORTS = {
    "one-supporting-fact": {1},
    "two-supporting-facts": {2},
    "three-supporting-facts": {3},
    "two-argument-relations": {1},
    "negation": {1},
    "coreference": {1, 2},
    "deduction": {2},
    "positions": {2},
    "path-finding": {2},
}


def without(facts, index: int):
    return [fact for i, fact in enumerate(facts) if i != index]


@pytest.mark.parametrize("task", STORY_TASKS)
def test_every_answer_follows_from_the_story_and_from_its_support_alone(task):
    solve = SOLVERS[task]
    for question in made(task):
        assert solve(Told(question.facts), question.question) == question.answer, question
        assert len(set(question.support)) == len(question.support)
        support = [question.facts[index] for index in sorted(question.support)]
        assert solve(Told(support), question.question) == question.answer, question


@pytest.mark.parametrize("task", SUPPORTS)
def test_no_supporting_fact_can_be_missed(task):
    """Counting and lists are left out: what somebody took and dropped again is told but changes no answer."""
    for question in made(task):
        assert len(question.support) in SUPPORTS[task]
        support = [question.facts[index] for index in sorted(question.support)]
        for index in range(len(support)):
            told = Told(without(support, index))
            assert SOLVERS[task](told, question.question) != question.answer, question


@pytest.mark.parametrize("task", ["counting", "lists"])
def test_the_support_is_all_that_the_person_took_and_dropped(task):
    for question in made(task):
        person = next(word for word in question.question if word in TRAIN_NAMES)
        expected = [
            index for index, fact in enumerate(question.facts) if fact[0] == person and (TAKE | DROP) & set(fact)
        ]
        assert list(question.support) == expected


# Balance: nothing simpler than reading is near right


@pytest.mark.parametrize("task", STORY_TASKS)
def test_no_answer_is_near_right_whatever_the_story(task):
    questions = made(task)
    answers = Counter(question.answer for question in questions)
    share = answers.most_common(1)[0][1] / len(questions)
    most = {
        "negation": 0.5,
        "positions": 0.5,
        "counting": 0.25,
        "lists": 0.25,
        "deduction": 1 / 6,
        "path-finding": 1 / 12,
    }
    assert share < most.get(task, 1 / 16) + 0.06  # three standard errors of 600 at a half
    if task == "lists":
        assert len(answers) == 1 + 4 + 6 + 4
    if task == "path-finding":
        assert len(answers) == 12


@pytest.mark.parametrize("task", STORY_TASKS)
def test_neither_the_first_nor_the_last_fact_answers(task):
    """The share of questions whose only support is the story's first or last fact."""
    questions = made(task)
    for place in (0, -1):
        alone = [q for q in questions if len(q.facts) > 2 and q.support == (range(len(q.facts))[place],)]
        assert len(alone) < 0.5 * len(questions)


def test_the_answer_is_not_what_is_mentioned_last():
    for task in ("one-supporting-fact", "two-supporting-facts", "three-supporting-facts", "coreference"):
        hits = 0
        for question in made(task):
            mentioned = [word for fact in question.facts for word in fact if word in TRAIN_PLACES]
            hits += mentioned[-1] == question.answer
        assert hits < 0.65 * COUNT, task


def test_a_no_is_not_told_by_a_negative_word():
    """Of the noes about half have "not" or "no longer" in their support; a yes never does."""
    by_answer = defaultdict(Counter)
    for question in made("negation"):
        negative = bool({"not", "longer"} & set(question.facts[question.support[0]]))
        by_answer[question.answer][negative] += 1
    assert by_answer["yes"][True] == 0
    assert 0.4 < by_answer["no"][True] / by_answer["no"].total() < 0.6


@pytest.mark.parametrize("task", STORY_TASKS)
def test_distractors_and_lengths(task):
    questions = made(task)
    lengths = [len(question.facts) for question in questions]
    assert max(lengths) <= (16 if task == "three-supporting-facts" else 12)
    assert len(set(lengths)) >= 3
    assert sum(len(q.facts) > len(q.support) for q in questions) > 0.6 * COUNT
    for question in questions:
        words = {word for fact in (*question.facts, question.question) for word in fact}
        assert len(words & OPEN_WORDS) <= MOST_NAMES + MOST_PLACES


# Held-out words


def test_test_stories_have_only_names_and_places_that_no_training_story_has():
    train, test = load_stories("train", 60, seed=0), load_stories("test", 60, seed=0)
    assert not set(TRAIN_NAMES + TRAIN_PLACES) & set(TEST_NAMES + TEST_PLACES)
    assert len(set(TRAIN_NAMES)) == len(set(TRAIN_PLACES)) == 16
    assert len(set(TEST_NAMES)) == len(set(TEST_PLACES)) == 8
    words = [
        {word for question in part.all for sentence in (*question.facts, question.question) for word in sentence}
        for part in (train, test)
    ]
    assert words[0] - words[1] == set(TRAIN_NAMES + TRAIN_PLACES)
    assert words[1] - words[0] == set(TEST_NAMES + TEST_PLACES)


def test_test_stories_are_not_the_training_stories_under_other_names():
    """At the same seed, with every name and place replaced by its number in the story."""
    for task in ("three-supporting-facts", "counting", "deduction", "path-finding"):
        train = {anonymous(question) for question in made(task)}
        test = [anonymous(q) for q in generate(task, 200, 0, names=TEST_NAMES, places=TEST_PLACES)]
        assert sum(story in train for story in test) < 20


def anonymous(question: Question) -> tuple:
    numbers = {}
    open_words = {*OPEN_WORDS, *TEST_NAMES, *TEST_PLACES}
    return tuple(
        tuple(str(numbers.setdefault(word, len(numbers))) if word in open_words else word for word in sentence)
        for sentence in (*question.facts, question.question)
    )


# Determinism, files, arguments


@pytest.mark.parametrize("task", STORY_TASKS)
def test_a_smaller_count_is_the_beginning_of_a_larger(task):
    assert made(task, 50) == made(task)[:50]
    assert made(task, 50) != made(task, 50, seed=1)


def test_the_stories_are_the_same_in_every_version():
    """Figures and resumed runs rely on it."""
    identity = load_stories("train", 20, seed=0).identity()
    assert identity == {"name": "stories train", "fingerprint": "05be609da883349c", "embedded": True}


def test_loading_says_what_it_made(caplog):
    caplog.set_level(logging.INFO, "jaxai.data")
    questions = load_stories("test", 5, seed=3)
    assert caplog.messages == [questions.source]
    assert questions.source == "stories test: 5 questions of each of 11 tasks from our own grammar, seed 3"
    assert list(questions.titles.values()) == list(STORY_TASKS)
    assert {task: len(part) for task, part in questions.tasks.items()} == dict.fromkeys(range(1, 12), 5)
    assert [question.task for question in questions.all] == [task for task in range(1, 12) for _ in range(5)]


def test_written_stories_are_read_back_equal(tmp_path):
    for split in ("train", "test"):
        questions = load_stories(split, 20, seed=1)
        paths = write_babi(questions, tmp_path / "own", split)
        assert paths[7].name == f"qa8_coreference_{split}.txt"
        back = load_babi(tmp_path / "own", split, tasks=questions.tasks)
        assert (back.tasks, back.titles, back.fingerprint) == (questions.tasks, questions.titles, questions.fingerprint)


@pytest.mark.parametrize("task", STORY_TASKS)
def test_lines_are_the_official_format(task):
    questions = made(task, 30)
    lines = to_lines(questions)
    assert tuple(questions) == parse("\n".join(lines), questions[0].task, "made")
    assert lines[0].startswith("1 ")
    assert lines[0].endswith(".")
    assert sum("?\t" in line for line in lines) == 30


def test_pronouns_agree_with_the_names():
    for question in made("coreference"):
        who = []
        for fact in question.facts:
            pronoun = next((word for word in fact if word in PRONOUNS), None)
            if not pronoun:
                who = [word for word in fact if word in TRAIN_NAMES]
            else:
                assert pronoun == ("they" if len(who) == 2 else "she" if who[0] in stories.WOMEN else "he")


def test_draws_are_even():
    draws = stories._Draws("0")
    counts = np.bincount([draws.below(6) for _ in range(6_000)], minlength=6)
    assert counts.sum() == 6_000
    assert ((counts - 1_000) ** 2).sum() / 1_000 < 20.5  # chi squared with 5 degrees of freedom, one in a thousand
    assert sorted(draws.sample(range(9), 9)) == list(range(9))
    assert {draws.between(2, 4) for _ in range(99)} == {2, 3, 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "lists-sets"}, "task 'lists-sets' is unknown; choose one of: one-supporting-fact, two-"),
        ({"count": 0}, "count is 0 and seed 0"),
        ({"seed": -1}, "seed -1; choose at least 1 and 0"),
        ({"names": TEST_NAMES[:3]}, "names are 3 different words of 3; give 4 or more"),
        ({"places": TEST_PLACES[:6] + TEST_PLACES[:1]}, "places are 6 different words of 7; give 6 or more"),
        ({"names": (*TEST_NAMES, "Anna")}, "names have 'Anna'; give single words in lower case"),
        ({"names": (*TEST_NAMES, "anna b")}, "names have 'anna b'"),
    ],
)
def test_bad_arguments(change, message):
    options = {"task": "lists", "count": 1, "seed": 0, "names": TEST_NAMES, "places": TEST_PLACES} | change
    with pytest.raises(ValueError, match=message) as caught:
        generate(options.pop("task"), options.pop("count"), options.pop("seed"), **options)
    assert "\n" not in str(caught.value)


def test_unknown_split():
    with pytest.raises(ValueError, match="split 'tests' is unknown \\(did you mean 'test'"):
        load_stories("tests", 1, seed=0)
