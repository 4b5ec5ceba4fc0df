"""bAbI: the format and what is wrong with files, folders and archives of it, arrays with slots, endless batches."""

import dataclasses
import gzip
import io
import json
import logging
import lzma
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxai.data.qa import babi as babi
from jaxai.data.qa.babi import Question, load_babi, parse, to_lines, write_babi
from jaxai.data.qa.questions import Vocabulary, decode, encode, question_batches
from jaxai.data.qa.stories import OPEN_WORDS, load_stories

STORY = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary got the milk there.
5 What is Mary carrying? \tMilk,Football\t4 1
1 Daniel is in the office.
2 Is Daniel in the office?\tyes\t1
"""
MARY = ("mary", "moved", "to", "the", "bathroom")
JOHN = ("john", "went", "to", "the", "hallway")
MILK = ("mary", "got", "the", "milk", "there")
STORY_QUESTIONS = (
    Question(1, (MARY, JOHN), ("where", "is", "mary"), "bathroom", (0,)),
    Question(1, (MARY, JOHN, MILK), ("what", "is", "mary", "carrying"), "milk,football", (2, 0)),
    Question(1, (("daniel", "is", "in", "the", "office"),), ("is", "daniel", "in", "the", "office"), "yes", (0,)),
)


def fill(folder: Path, split: str = "train", tasks=babi.BABI_TASKS, text: str = STORY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        (folder / f"qa{task}_some-title_{split}.txt").write_text(text)
    return folder


def packed(members: dict[str, bytes], pack=lzma.compress) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return pack(buffer.getvalue())


# The format


def test_what_a_file_says():
    assert parse(STORY, 1, "file") == STORY_QUESTIONS
    assert parse("\n" + STORY.replace("\n", "\n\n") + "  ", 1, "file") == STORY_QUESTIONS
    assert parse("1 A, b?! c.\n2 D?\tE\t", 3, "file") == (Question(3, (("a", "b", "c"),), ("d",), "e", ()),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Where is Mary?", "line 6: does not begin with the line's number"),
        ("6", "line 6: does not begin"),
        ("7 John went home.", "line 6: number 7 after 5; they count on by one, and 1 begins a story"),
        ("99999 John went home.", "line 6: does not begin"),
        ("6 Where is Mary?\tbathroom", "line 6: 1 tabs; a fact has none, a question two"),
        ("6 Where is Mary?\tbathroom\t1\t2", "line 6: 3 tabs"),
        ("6 Where is Mary?\t \t1", "line 6: the question has no answer"),
        ("6 Where is Mary?\tbathroom\t3", "line 6: support '3' is not the number of an earlier fact"),
        ("6 Where is Mary?\tbathroom\t0", "line 6: support '0'"),
        ("6 Where is Mary?\tbathroom\t6", "line 6: support '6'"),
        ("6 Where is Mary?\tbathroom\tone", "line 6: support 'one'"),
        ("6 Where is Mary?\tbathroom\t\u0661", "line 6: support '\u0661'"),
        ("6 ?!", "line 6: no word"),
        ("6 ?\tbathroom\t1", "line 6: no word"),
    ],
)
def test_malformed_lines(line, message):
    lines = [*STORY.split("\n")[:5], line]
    with pytest.raises(ValueError, match="some file, " + message.replace("?", "\\?")) as caught:
        parse("\n".join(lines), 1, "some file")
    assert "\n" not in str(caught.value)


def test_a_file_needs_a_question_and_stories_an_end():
    with pytest.raises(ValueError, match="some file: no question in it"):
        parse("1 Mary went home.\n", 1, "some file")
    with pytest.raises(ValueError, match="some file: no question in it"):
        parse("", 1, "some file")
    endless = "\n".join(f"{number} Mary went home." for number in range(1, 1_002))
    with pytest.raises(ValueError, match="line 1001: a story of more than 1,000 lines"):
        parse(endless, 1, "some file")


@given(st.data())
def test_a_damaged_file_gives_a_typed_error_or_questions(data):
    """Characters replaced, lines dropped, doubled and swapped."""
    text = list(STORY)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        new = data.draw(st.text(max_size=3) | st.sampled_from(["\t", "\n1 ", "9"]))
        text[at : at + data.draw(st.integers(0, 3))] = new
    lines = "".join(text).split("\n")
    lines.insert(data.draw(st.integers(0, len(lines))), data.draw(st.sampled_from(lines)))
    try:
        questions = parse("\n".join(lines), 1, "file")
    except ValueError as error:
        assert str(error).startswith("file")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return
    for question in questions:
        assert question.question
        assert all(question.facts)
        assert all(0 <= index < len(question.facts) for index in question.support)


WORD = st.text("abcdefgäßж0123456789-'", min_size=1, max_size=5)
SENTENCE = st.lists(WORD, min_size=1, max_size=4).map(tuple)


@st.composite
def any_stories(draw):
    """Facts, question, answer and support, as tuples."""
    result, facts = [], ()
    for _ in range(draw(st.integers(1, 5))):
        facts = facts * draw(st.integers(0, 1)) + tuple(draw(st.lists(SENTENCE, max_size=4)))
        support = draw(st.lists(st.integers(0, len(facts) - 1), max_size=3)) if facts else []
        result.append((facts, draw(SENTENCE), draw(WORD), tuple(support)))
    return result


@given(any_stories())
@example([((), ("a",), "b", ())] * 1_500)
@example([((("a",),) * 700, ("b",), "c", (699,)), ((("a",),) * 998, ("b",), "c", (0, 997))] * 2)
def test_what_is_written_is_read_back(made_up):
    questions = tuple(Question(7, *parts) for parts in made_up)
    assert parse("\n".join(to_lines(questions)), 7, "file") == questions


def test_a_story_goes_on_as_it_was_written():
    assert to_lines(parse(STORY, 1, "file")) == [
        "1 mary moved to the bathroom.",
        "2 john went to the hallway.",
        "3 where is mary?\tbathroom\t1",
        "4 mary got the milk there.",
        "5 what is mary carrying?\tmilk,football\t4 1",
        "1 daniel is in the office.",
        "2 is daniel in the office?\tyes\t1",
    ]


# Folders and archives


def test_names_have_a_capital_letter_inside_a_sentence(tmp_path):
    """Mary is asked for; John and Daniel only begin sentences in these lines."""
    assert load_babi(fill(tmp_path), "train").open_words == {"mary", "daniel"}


@pytest.mark.parametrize(
    "below", ["", "en", "babi", "babi/en", "babi/en-10k", "tasks_1-20_v1-2/en-10k", "babi/tasks/en"]
)
def test_folders(tmp_path, caplog, below):
    caplog.set_level(logging.INFO, "jaxai.data")
    folder = fill(tmp_path / below, tasks=(*babi.BABI_TASKS, 21))
    (folder / "qa1_some-title_test.txt").write_text("damaged")
    (folder / "LICENSE.txt").write_text("something else")
    questions = load_babi(tmp_path, "train")
    assert questions.tasks == {n: tuple(dataclasses.replace(q, task=n) for q in STORY_QUESTIONS) for n in range(1, 21)}
    assert questions.titles == dict.fromkeys(range(1, 21), "some-title")
    assert len(questions.all) == 60
    assert caplog.messages == [questions.source]
    assert questions.source.endswith(f"60 questions of 20 tasks from {folder.as_posix()}")
    name = f"bAbI {folder.name} train"
    assert questions.identity() == {"name": name, "fingerprint": questions.fingerprint, "embedded": False}


@pytest.mark.parametrize(
    ("name", "pack"),
    [("en_1k.tar.xz", lzma.compress), ("tasks_1-20_v1-2.tar.gz", gzip.compress), ("babi.tar", bytes)],
)
def test_archives_say_the_same_as_their_folder(tmp_path, name, pack):
    fill(tmp_path / "folder" / "en")
    folder = load_babi(tmp_path / "folder", "train")
    members = {
        f"top/en/qa{task}_some-title_train.txt": STORY.replace("\n", "\r\n").encode() for task in babi.BABI_TASKS
    }
    members |= {"top/en-10k/qa1_some-title_train.txt": b"other", "../qa1_x_train.txt": b"outside", "top/README": b"x"}
    (tmp_path / "babi").mkdir()
    (tmp_path / "babi" / name).write_bytes(packed(members, pack))
    for place in (tmp_path, tmp_path / "babi", tmp_path / "babi" / name):
        archive = load_babi(place, "train")
        assert (archive.name, archive.tasks, archive.fingerprint) == (folder.name, folder.tasks, folder.fingerprint)
        assert archive.source.endswith(f"from {tmp_path.as_posix()}/babi/{name}/top/en")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and "folder" not in path.parts) == [name]


def test_fingerprints_tell_questions_apart(tmp_path):
    prints = set()
    for index, text in enumerate((STORY, STORY.replace("hallway", "garden"), STORY.replace("4 1", "1 4"))):
        prints.add(load_babi(fill(tmp_path / str(index), text=text), "train").fingerprint)
    prints.add(load_babi(fill(tmp_path / "0"), "train", tasks=[1]).fingerprint)
    prints.add(load_babi(fill(tmp_path / "0"), "train", tasks=[2]).fingerprint)
    assert len(prints) == 5


def test_missing_and_ambiguous_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist"):
        load_babi(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"no bAbI files \(qa1_..._train.txt\) nor an archive"):
        load_babi(tmp_path, "train")
    with pytest.raises(ValueError, match="split 'valid' is unknown"):
        load_babi(tmp_path, "valid")
    fill(tmp_path / "hn", tasks=range(1, 19))
    with pytest.raises(FileNotFoundError, match=r"hn: no file qa19_\*_train.txt, qa20_\*_train.txt; add what"):
        load_babi(tmp_path, "train")
    assert list(load_babi(tmp_path, "train", tasks=(3, 2)).tasks) == [3, 2]
    with pytest.raises(FileNotFoundError, match=r"no file qa1_\*_test.txt"):
        load_babi(tmp_path, "test", tasks=[1])
    (tmp_path / "hn" / "qa2_other_train.txt").write_text(STORY)
    with pytest.raises(
        ValueError, match=r"qa2_other_train.txt and qa2_some-title_train.txt are both task 2; leave one"
    ):
        load_babi(tmp_path, "train", tasks=[1])
    fill(tmp_path / "shuffled")
    with pytest.raises(ValueError, match=r"bAbI files in .*hn, .*shuffled; give one of these folders"):
        load_babi(tmp_path, "train")
    fill(tmp_path / "en")
    assert load_babi(tmp_path, "train").name == "bAbI en train"


def test_bad_encoding_names_the_file(tmp_path):
    folder = fill(tmp_path / "en")
    (folder / "qa3_some-title_train.txt").write_bytes(STORY.encode() + b"1 caf\xe9.\n")
    with pytest.raises(ValueError, match=r"qa3_some-title_train.txt: not UTF-8 \(byte 0xe9"):
        load_babi(tmp_path, "train")
    (tmp_path / "en.tar.xz").write_bytes(packed({"en/qa3_a_train.txt": b"1 caf\xe9.\n"}))
    with pytest.raises(ValueError, match=r"en.tar.xz/en/qa3_a_train.txt: not UTF-8 \(.* at offset 5\)"):
        load_babi(tmp_path / "en.tar.xz", "train", tasks=[3])
    (folder / "qa3_some-title_train.txt").write_text(STORY.replace("3 Where", "Where"))
    with pytest.raises(ValueError, match=r"qa3_some-title_train.txt, line 3: does not begin"):
        load_babi(tmp_path, "train")


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", lzma.compress(b"no tar file" * 99), packed({"en/qa1_a_train.txt": STORY.encode() * 99})[:-40]],
)
def test_damaged_archives(tmp_path, content):
    (tmp_path / "en.tar.xz").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=r"en.tar.xz: damaged archive or none") as caught:
        load_babi(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_archives_that_unpack_to_too_much(tmp_path, monkeypatch):
    path = tmp_path / "en.tar.xz"
    path.write_bytes(packed({"en/qa1_a_train.txt": b"1 a.\n" * 9_000}))
    monkeypatch.setattr(babi, "FILE_LIMIT", 40_000)
    with pytest.raises(ValueError, match=r"en/qa1_a_train.txt has 45,000 bytes, no bAbI task has so many"):
        load_babi(path, "train")
    monkeypatch.setattr(babi, "ARCHIVE_LIMIT", 40_000)
    with pytest.raises(ValueError, match=r"en.tar.xz: unpacks to more than 40,000 bytes; unpack it"):
        load_babi(path, "train")


def test_links_and_sizes_that_a_header_only_claims(tmp_path):
    """A link to a file outside is not followed, and no header makes us allocate what is not there."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("en/qa1_a_train.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "en.tar").write_bytes(buffer.getvalue())
    with pytest.raises(FileNotFoundError, match="no bAbI files"):
        load_babi(tmp_path / "en.tar", "train", tasks=[1])
    claimed = tarfile.TarInfo("en/qa1_a_train.txt")
    claimed.size = 10**15
    (tmp_path / "en.tar").write_bytes(claimed.tobuf() + b"1 a.\n")
    with pytest.raises(ValueError, match="has 1,000,000,000,000,000 bytes"):
        load_babi(tmp_path / "en.tar", "train", tasks=[1])


def test_writing_makes_the_folder_and_checks_the_split(tmp_path):
    questions = load_stories("train", 3, seed=0)
    with pytest.raises(ValueError, match="split 'dev' is unknown"):
        write_babi(questions, tmp_path / "new", "dev")
    paths = write_babi(questions, tmp_path / "a" / "b", "test")
    assert [path.name for path in paths][:2] == [f"qa{n}_{questions.titles[n]}_test.txt" for n in (1, 2)]


@pytest.fixture(scope="session")
def official() -> Path:
    """The folder with the official files; skips where there is none."""
    root = os.environ.get("JAXAI_DATA") or Path(__file__).parents[3] / "shared" / "data"
    folder = Path(root) / "babi"
    if not folder.is_dir():
        pytest.skip("official bAbI files not found: set JAXAI_DATA to the folder that holds babi/")
    return folder


def test_the_official_files(official):
    train, test = load_babi(official, "train"), load_babi(official.parent, "test")
    assert {len(part) for questions in (train, test) for part in questions.tasks.values()} == {1_000}
    assert train.titles[1] == "single-supporting-fact"
    assert test.titles[19] == "path-finding"
    first = train.tasks[1][0]
    assert first.facts == (MARY, JOHN)
    assert (first.question, first.answer, first.support) == (("where", "is", "mary"), "bathroom", (0,))
    assert max(len(question.facts) for question in train.tasks[3]) == 224
    persons = {"mary", "john", "sandra", "daniel", "fred", "bill", "julie", "jeff"}
    assert train.open_words == test.open_words == persons | {"greg", "brian", "lily", "julius", "bernhard"}
    for task, questions in test.tasks.items():
        assert parse("\n".join(to_lines(questions)), task, "file") == questions
    vocabulary = Vocabulary.build(train.all, slots=0)
    assert sum(encode(test.all, vocabulary, max_facts=5)["answer"] < 0) == 1  # a list that no training story has


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
