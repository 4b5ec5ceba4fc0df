"""Scores of translations: sacrebleu's, with its signatures."""

import pytest

from jaxai.metrics.text import translation_scores

REFERENCES = ["Two men are playing football in a park .", "A Girl reads a long book near the sea ."]


def test_a_perfect_translation_and_a_worse_one():
    best = translation_scores(REFERENCES, REFERENCES)
    assert best["bleu"] == pytest.approx(100)
    assert best["chrf"] == pytest.approx(100)
    worse = translation_scores(["Two men play in a park .", REFERENCES[1]], REFERENCES)
    assert 30 < worse["bleu"] < 90
    assert worse["chrf"] < 100


def test_case_counts_unless_folded_and_the_signature_says_so():
    lower = [reference.lower() for reference in REFERENCES]
    mixed, folded = translation_scores(lower, REFERENCES), translation_scores(lower, REFERENCES, lowercase=True)
    assert mixed["bleu"] < folded["bleu"] == pytest.approx(100)
    assert "case:mixed|eff:no|tok:13a" in mixed["bleu_signature"]
    assert "case:lc|eff:no|tok:13a" in folded["bleu_signature"]
    assert "case:lc" in folded["chrf_signature"]


@pytest.mark.parametrize("count", [0, 1])
def test_unequal_numbers(count):
    with pytest.raises(ValueError, match="give as many of each, and at least 1"):
        translation_scores(REFERENCES[:count], REFERENCES[: 2 * count])
