"""Byte pair encoding: round trips, an oracle for the merges, the same result whatever the threads."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxai.data.text.bpe import BOS, EOS, PAD, SPACE, SPECIAL, UNK, Bpe, framed, train_bpe

SENTENCES = [
    "Ein Mann, der's kann, fährt (schnell!) mit 120 km/h durch die Straße.",
    "A man who can drives (fast!) at 120 km/h through the street...",
    "Zwei Männer fahren; two men are driving - the street is 3.5 km long.",
    "“Schön”, sagt der Mann. He's <unk> & gay, #1 @ all <pad>: 100 %",
] * 3
BPE = train_bpe(SENTENCES, 160, lowercase=False)
SEEN = sorted(set("".join(SENTENCES)))


def plain(sentence: str) -> str:
    return " ".join(sentence.replace(SPACE, " ").split())


@given(st.text(st.sampled_from([*SEEN, SPACE, "\t", "\n", "\u3000"])))
@example("  Mann\u00a0, \n")
@example("...!!!  -- 120Mann")
@example("<pad><unk>")
def test_round_trip(sentence):
    (ids,) = BPE.encode([sentence])
    assert ids.dtype == np.int32
    assert BPE.decode(ids) == plain(sentence)
    assert not np.isin(ids, (PAD, BOS, EOS, UNK)).any()


@given(st.text())
def test_unknown_characters_become_one_replacement_each(sentence):
    (ids,) = BPE.encode([sentence])
    expected = "".join(character if character in [*SEEN, " "] else "\ufffd" for character in plain(sentence))
    assert BPE.decode(ids) == expected
    assert (UNK in ids) == ("\ufffd" in expected)


def test_lower_case():
    bpe = train_bpe(SENTENCES, 120, lowercase=True)
    assert bpe.decode(bpe.encode(["EIN  Mann FÄHRT"])[0]) == "ein mann fährt"
    assert not any(token != token.lower() for token in bpe.tokens)


def test_the_vocabulary():
    assert BPE.size == len(BPE.tokens) == 160
    assert BPE.tokens[:4] == ("<pad>", "<bos>", "<eos>", "<unk>") == SPECIAL
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    assert set(SEEN) - {" "} < set(BPE.tokens)
    assert len(BPE.encode(["Mann"])[0]) == 1
    for token in BPE.tokens[4:]:  # words, numbers and the rest are never merged
        kinds = {"word" if c.isalpha() else "number" if c.isdigit() else "rest" for c in token.removeprefix(SPACE)}
        assert len(kinds) <= 1


def test_the_merges_are_those_of_the_paper():
    """Sennrich et al., algorithm 1: the most frequent pair first."""
    words = Counter(["low", "lower", "newest", "newest", "widest", "low", "low", "widest", "newest"])
    split = {tuple(SPACE + word): count for word, count in words.items()}
    bpe = train_bpe(["low lower newest newest widest low low widest newest"], 24, lowercase=False)
    assert bpe.merges
    for merge in bpe.merges:
        pairs = Counter()
        for tokens, count in split.items():
            for pair in itertools.pairwise(tokens):
                pairs[pair] += count
        assert pairs[merge] == max(pairs.values())
        split = {merged(tokens, merge): count for tokens, count in split.items()}
    ids = bpe.encode(list(words))
    assert [tuple(bpe.tokens[i] for i in one) for one in ids] == list(split)


def merged(tokens: tuple[str, ...], merge: tuple[str, str]) -> tuple[str, ...]:
    result, rest = [], list(tokens)
    while rest:
        take = 2 if tuple(rest[:2]) == merge else 1
        result.append("".join(rest[:take]))
        rest = rest[take:]
    return tuple(result)


def test_sentences_of_one_batch_do_not_touch_each_other():
    together = BPE.encode([*SENTENCES, "", "  ", "Mann"])
    assert len(together) == len(SENTENCES) + 3
    assert [len(ids) for ids in together[-3:]] == [0, 0, 1]
    for sentence, ids in zip(SENTENCES, together, strict=False):
        np.testing.assert_array_equal(BPE.encode([sentence])[0], ids)
    assert BPE.encode([]) == []


def test_decode_stops_at_the_end_and_skips_padding():
    man, street = BPE.encode(["Mann", "street"])
    ids = np.concatenate([[PAD, BOS], man, street, [EOS], man, [PAD]])
    assert BPE.decode(ids) == "Mann street"
    assert BPE.decode(np.array([PAD, PAD])) == ""
    assert BPE.decode(np.zeros(0, np.int32)) == ""


def test_framed():
    (ids,) = BPE.encode(["Zwei Männer"])
    (whole,) = framed([ids])
    assert whole.dtype == np.int32
    assert whole.tolist() == [BOS, *ids.tolist(), EOS]
    assert BPE.decode(whole) == "Zwei Männer"


def test_it_survives_json():
    again = Bpe.from_json(json.loads(json.dumps(BPE.to_json())))
    assert again == BPE
    for one, two in zip(again.encode(SENTENCES), BPE.encode(SENTENCES), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_order_of_the_sentences_does_not_matter():
    assert train_bpe(SENTENCES[::-1], 160, lowercase=False) == BPE


@pytest.mark.parametrize("threads", ["1", "4"])
def test_the_same_sentences_give_the_same_encoding_in_every_process(threads):
    sentences = [" ".join(f"w{i * k % 89}x{i * k % 7}" for i in range(40)) for k in range(500)]
    program = (
        "import sys, json; from jaxai.data.text.bpe import train_bpe;"
        "print(json.dumps(train_bpe(json.load(sys.stdin), 300, lowercase=False).to_json()))"
    )
    environment = os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(sentences),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Bpe.from_json(json.loads(done.stdout)) == train_bpe(sentences, 300, lowercase=False)
    assert done.stderr == ""


def test_fewer_tokens_where_nothing_is_left_to_merge():
    assert train_bpe(["ab"], 1000, lowercase=False).tokens[4:] == ("a", "b", SPACE, "ab", SPACE + "ab")


@pytest.mark.parametrize(
    ("sentences", "size", "message"),
    [
        (["abc"], 7, "size is 7, but the sentences have 4 different characters, .* choose at least 8"),
        ([], 100, "the 0 sentences have no character"),
        (["", "  "], 100, "the 2 sentences have no character"),
    ],
)
def test_bad_training(sentences, size, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(sentences, size, lowercase=False)


@pytest.mark.parametrize("ids", [[-1], [4, 160]])
def test_ids_out_of_range(ids):
    with pytest.raises(ValueError, match=r"ids are .* expected 0 to 159"):
        BPE.decode(np.array(ids))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ["a", "b"]},
        {"tokens": [*SPECIAL, "a", "a"]},
        {"merges": [["a", "?!"]]},
        {"merges": [["a"]]},
        {"merges": 3},
    ],
)
def test_bad_json(change):
    with pytest.raises(ValueError, match="take"):
        Bpe.from_json(BPE.to_json() | change)
    with pytest.raises(ValueError, match="value is no encoding"):
        Bpe.from_json({"tokens": []})
