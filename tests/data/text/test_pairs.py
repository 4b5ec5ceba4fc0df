"""Sentence pairs: files and what is wrong with them, few shapes, every pair equally often, exact resumption."""

import gzip
import json
import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxai.data.text.pairs import bucketed, buckets, load_pairs
from tests.data.conftest import made_up


def write(folder, german, english, pack=bytes, ending=""):
    for language, content in (("de", german), ("en", english)):
        (folder / f"train.{language}{ending}").write_bytes(pack(content.encode()))


def steps(iterator, count: int) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(count)]


def assert_equal(first: list[dict], second: list[dict]) -> None:
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], strict=True)


# Files


@pytest.mark.parametrize(("pack", "ending"), [(bytes, ""), (gzip.compress, ".gz")])
def test_lines_are_paired(tmp_path, caplog, pack, ending):
    caplog.set_level(logging.INFO, "jaxai.data")
    write(tmp_path, "\ufeffEin Mann.\r\n Zwei\u2028Frauen. \r\n", "A man.\nTwo\x0cwomen.", pack, ending)
    pairs = load_pairs(tmp_path, "train", "de", "en")
    assert pairs.sources == ("Ein Mann.", "Zwei\u2028Frauen.")
    assert pairs.targets == ("A man.", "Two\x0cwomen.")
    name = f"{tmp_path.name} train de-en"
    assert pairs.source == f"{name}: 2 pairs from {tmp_path / 'train.de'}{ending} and train.en{ending}"
    assert caplog.messages == [pairs.source]
    assert pairs.identity() == {"name": name, "fingerprint": pairs.fingerprint, "embedded": False}
    back = load_pairs(str(tmp_path), "train", "en", "de")
    assert (back.sources, back.targets) == (pairs.targets, pairs.sources)
    assert back.fingerprint != pairs.fingerprint


def test_empty_lines_are_dropped_in_pairs_and_counted(tmp_path):
    write(tmp_path, "eins\n\ndrei\nvier\n", "one\ntwo\n \nfour\n")
    pairs = load_pairs(tmp_path, "train", "de", "en")
    assert list(zip(pairs.sources, pairs.targets, strict=True)) == [("eins", "one"), ("vier", "four")]
    assert "2 pairs, without 2 with an empty side from" in pairs.source


@pytest.mark.parametrize(
    ("german", "english", "message"),
    [
        ("eins\nzwei\n", "one\n", r"train.de has 2 lines and .*train.en has 1 lines; line by line .* same release"),
        ("", "one\n", r"train.de has 0 lines and .*train.en has 1 lines"),
        ("eins\n\n", "\ntwo\n", r"train.de and .*train.en have no line that is not empty in both"),
        ("", "", "no line"),
    ],
)
def test_bad_contents(tmp_path, german, english, message):
    write(tmp_path, german, english)
    with pytest.raises(ValueError, match=message) as caught:
        load_pairs(tmp_path, "train", "de", "en")
    assert "\n" not in str(caught.value)


def test_bad_encoding_and_missing_files(tmp_path):
    write(tmp_path, "schön\n", "nice\n")
    with pytest.raises(FileNotFoundError, match=r"train.fr: no such file, nor train.fr.gz; files are named"):
        load_pairs(tmp_path, "train", "fr", "en")
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist or is a file; .* train.de"):
        load_pairs(tmp_path / "nowhere", "train", "de", "en")
    (tmp_path / "train.de").write_bytes("schön\n".encode("latin1"))
    with pytest.raises(ValueError, match=r"train.de: not UTF-8 \(byte 0xf6 at offset 3\)"):
        load_pairs(tmp_path, "train", "de", "en")


# The shipped pairs


@pytest.mark.parametrize(("split", "count"), [("train", 6_688), ("val", 500), ("test", 500)])
def test_the_embedded_pairs(caplog, split, count):
    caplog.set_level(logging.INFO, "jaxai.data")
    pairs = load_pairs(None, split, "en", "de")
    assert pairs.embedded
    assert len(pairs.sources) == len(pairs.targets) == count
    assert pairs.source == f"libreoffice {split} en-de: {count:,} pairs of LibreOffice's interface texts, embedded"
    assert caplog.messages == [pairs.source]
    assert pairs.identity() == {
        "name": f"libreoffice {split} en-de",
        "fingerprint": pairs.fingerprint,
        "embedded": True,
    }
    back = load_pairs(None, split, "de", "en")
    assert (back.sources, back.targets) == (pairs.targets, pairs.sources)


def test_what_the_embedded_pairs_are_is_fixed():
    """A resumed run relies on it."""
    languages = [("en", "de"), ("en", "fr"), ("fr", "de")]
    fingerprints = [load_pairs(None, "train", *pair).fingerprint for pair in languages]
    assert fingerprints == ["8c86f33240fa5a53", "c66cb29d79a453db", "8534f92105d0be95"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("dev", "en", "de"),
            "split 'dev' is not in the embedded pairs; choose one of: train, val, test",
        ),
        (("train", "cs", "en"), "source 'cs' is not in the embedded pairs; choose one of: en, de, fr"),
    ],
)
def test_what_is_not_embedded(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_pairs(None, *arguments)


@given(count=st.integers(1, 60), seed=st.integers(0, 99), tokens=st.integers(120, 400), multiple=st.integers(1, 4))
def test_the_groups_hold_every_pair_once_and_keep_the_limits(count, seed, tokens, multiple):
    sources, targets = made_up(count, seed)
    groups = buckets(sources, targets, tokens, multiple=multiple)
    assert 1 <= len(groups) <= 8
    np.testing.assert_array_equal(np.sort(np.concatenate([group.rows for group in groups])), np.arange(count))
    for group in groups:
        assert group.source_length == max(len(sources[row]) for row in group.rows)
        assert group.target_length == max(len(targets[row]) for row in group.rows)
        assert group.batch_size % multiple == 0
        assert group.batch_size * max(group.source_length, group.target_length) <= tokens
        assert 1 <= group.batch_size < len(group.rows) + multiple


# Batches


def test_what_a_batch_is():
    sources, targets = made_up(300)
    shapes = set()
    for batch in steps(bucketed(sources, targets, 200, seed=0), 100):
        assert list(batch) == ["source", "target"]
        shapes.add((batch["source"].shape, batch["target"].shape))
        for name, sentences in (("source", sources), ("target", targets)):
            assert batch[name].dtype == np.int32
            assert batch[name].size <= 200
            for row in batch[name]:
                np.testing.assert_array_equal(row[row > 0], sentences[row[0] - 1])
                assert not row[len(sentences[row[0] - 1]) :].any()
        np.testing.assert_array_equal(batch["source"][:, 0], batch["target"][:, 0])  # still each other's translation
    groups = buckets(sources, targets, 200)
    assert shapes == {((g.batch_size, g.source_length), (g.batch_size, g.target_length)) for g in groups}


@pytest.mark.parametrize(("count", "tokens", "multiple"), [(200, 150, 1), (37, 90, 2), (3, 500, 4), (1, 40, 1)])
def test_every_pair_comes_equally_often(count, tokens, multiple):
    """After e epochs a group has begun its epoch e, or not finished it for less than a batch."""
    sources, targets = made_up(count)
    groups = buckets(sources, targets, tokens, multiple=multiple)
    epochs = 24
    total = sum(epochs * len(group.rows) // group.batch_size for group in groups)
    seen = Counter()
    for batch in steps(bucketed(sources, targets, tokens, seed=1, multiple=multiple), total):
        seen.update(batch["source"][:, 0].tolist())
    for group in groups:
        counts = [seen[row + 1] for row in group.rows.tolist()]
        assert sum(counts) == epochs * len(group.rows) // group.batch_size * group.batch_size
        assert max(counts) <= epochs
        assert max(counts) - min(counts) <= -(-group.batch_size // len(group.rows))


def test_pairs_and_batches_are_shuffled_by_the_seed_alone():
    sources, targets = made_up(100)
    first, again, other = (steps(bucketed(sources, targets, 60, seed=s), 60) for s in (3, 3, 4))
    assert_equal(first, again)
    order, another = ([batch["source"][:, 0].tolist() for batch in batches] for batches in (first, other))
    assert order != another
    assert order[:30] != order[30:]
    widths = [batch["source"].shape[1] for batch in first]
    assert widths != sorted(widths)


def test_the_order_is_the_same_in_every_version():
    """A resumed run relies on it."""
    sources, targets = [np.full(2, i, np.int32) for i in range(1, 9)], [np.full(3, i, np.int32) for i in range(1, 9)]
    batches = steps(bucketed(sources, targets, 12, seed=3), 4)
    assert [batch["source"][:, 0].tolist() for batch in batches] == [
        [7, 8, 5, 4],
        [3, 6, 1, 2],
        [2, 1, 5, 6],
        [4, 7, 8, 3],
    ]


@given(before=st.integers(0, 40))
def test_a_restored_iterator_continues_exactly(before):
    sources, targets = made_up(50)
    iterator = bucketed(sources, targets, 60, seed=9)
    steps(iterator, before)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_index": before}
    expected = steps(iterator, 5)
    fresh = bucketed(sources, targets, 60, seed=9)
    fresh.set_state(state)
    assert_equal(steps(fresh, 5), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(count):
    sources, targets = made_up(90)
    whole = steps(bucketed(sources, targets, 200, seed=2, multiple=count), 40)
    parts = [
        steps(bucketed(sources, targets, 200, seed=2, process_index=i, process_count=count), 40) for i in range(count)
    ]
    together = [{k: np.concatenate([part[k] for part in row]) for k in row[0]} for row in zip(*parts, strict=True)]
    assert_equal(together, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": [np.ones(3, np.int32)]}, "2 sources and 1 targets; they must be as many"),
        ({"sources": [], "targets": []}, "0 sources and 0 targets"),
        ({"targets": [np.ones(3, np.int32), np.ones(0, np.int32)]}, "pair 1 has an empty side"),
        ({"tokens_per_batch": 4}, "tokens_per_batch is 4, but the longest sentence has 5 tokens .* choose at least 5"),
        ({"multiple": 3}, "a multiple of 3 rows; choose at least 15"),
        ({"multiple": 0}, "multiple is 0"),
        ({"process_index": 1}, "process_index is 1"),
        ({"process_count": 0}, "process_index is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments(change, message):
    options = {"sources": [np.ones(5, np.int32), np.ones(2, np.int32)], "targets": [np.ones(3, np.int32)] * 2}
    with pytest.raises(ValueError, match=message):
        bucketed(**(options | {"tokens_per_batch": 10, "seed": 0} | change))
