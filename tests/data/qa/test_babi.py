"""bAbI: the format and what is wrong with files, folders and archives of it."""

import dataclasses
import gzip
import io
import logging
import lzma
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxai.data.qa import babi as babi
from jaxai.data.qa.babi import Question, load_babi, parse, to_lines, write_babi
from jaxai.data.qa.questions import Vocabulary, encode
from jaxai.data.qa.stories import load_stories

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
