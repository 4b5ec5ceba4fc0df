"""Scores of translations, by sacrebleu: BLEU and chrF with their signatures, which make them comparable."""

from collections.abc import Sequence


def case_scores(
    hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool
) -> dict[str, dict[str, float | str]]:
    """`translation_scores` ignoring case, as ``lowercase``, and, unless the texts are lower-cased, as ``cased``."""
    found = {"lowercase": translation_scores(hypotheses, references, lowercase=True)}
    return found if lowercase else found | {"cased": translation_scores(hypotheses, references)}


def translation_scores(
    hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False
) -> dict[str, float | str]:
    """Corpus BLEU (Papineni et al. 2002) and chrF2 (Popović 2015) of sentences against one reference each, 0 ... 100.

    Keys ``bleu``, ``chrf``, ``bleu_signature`` and ``chrf_signature``; a signature records case, tokeniser and version
    (Post 2018, arXiv:1804.08771). Sentences are plain text, not tokenised. ``lowercase`` folds the case of both sides.
    Raises ValueError for no sentences, and for unequal numbers of hypotheses and references.

    >>> scores = translation_scores(["A dog runs in the park."], ["A dog runs in a park."])
    >>> f"{scores['bleu']:.1f} {scores['chrf']:.1f}", scores["bleu_signature"].split("|version")[0]
    ('48.9 70.0', 'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp')
    """
    from sacrebleu.metrics.bleu import BLEU  # slow to import, and only some commands need it
    from sacrebleu.metrics.chrf import CHRF

    if len(hypotheses) != len(references) or not len(references):
        counts = f"{len(hypotheses):,} hypotheses for {len(references):,} references"
        raise ValueError(f"{counts}: give as many of each, and at least 1")
    result: dict[str, float | str] = {}
    for name, metric in (("bleu", BLEU(lowercase=lowercase)), ("chrf", CHRF(lowercase=lowercase))):
        result[name] = metric.corpus_score(list(hypotheses), [list(references)]).score
        result[f"{name}_signature"] = str(metric.get_signature())
    return result
