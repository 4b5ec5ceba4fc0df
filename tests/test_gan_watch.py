"""The watch for mode collapse: what it sees, and what it does about it."""

import logging

import numpy as np
import pytest

from jaxai.command import Stopped
from jaxai.gan_watch import Watch, Watched
from jaxai.train.loop import Setback

REAL = np.random.default_rng(0).normal(size=(200, 6))
LABELS = np.arange(200) % 10


def watch(policy: str) -> Watch:
    return Watch(Watched(on_collapse=policy, collapse_after=100), 50, REAL, LABELS)


def test_real_examples_are_as_varied_as_themselves():
    found = watch("stop").measure(REAL, LABELS)
    assert found == pytest.approx({"relative_distance": 1, "relative_classes": 1})
    assert watch("stop").act(1000, found) == found


SIGNS = [
    pytest.param(REAL / 4, LABELS, "its samples lie 0.25 as far apart as real ones", id="near"),
    pytest.param(REAL, LABELS % 4, "it makes 0.39 as many classes", id="classes"),
    pytest.param(REAL * 0, LABELS * 0, "lie 0.00 as far .* and it makes 0.10", id="one"),
]


@pytest.mark.parametrize(("samples", "labels", "words"), SIGNS)
def test_a_collapse_is_told_once_stops_or_goes_back(samples, labels, words, caplog):
    found = watch("warn").measure(samples, labels)
    caplog.set_level(logging.WARNING, "jaxai")
    careful = watch("warn")
    for step in (50, 100, 150):
        assert careful.act(step, found) == found
    (record,) = caplog.records
    assert record.getMessage().startswith("step 100: the generator has collapsed")
    with pytest.raises(Stopped, match=words):
        watch("stop").act(150, found)
    with pytest.raises(Setback, match=words) as setback:
        watch("rollback").act(150, found)
    assert setback.value.well == 100
    assert watch("stop").act(50, found) == found


def test_a_second_collapse_is_told_again(caplog):
    careful = watch("warn")
    bad, good = careful.measure(REAL / 4, LABELS), careful.measure(REAL, LABELS)
    for step, found in enumerate([bad, bad, good, bad], 200):
        careful.act(step, found)
    assert [record.getMessage()[:8] for record in caplog.records] == ["step 200", "step 203"]


def test_without_a_classifier_the_distance_alone_counts():
    plain = Watch(Watched(), 50, REAL)
    assert plain.measure(REAL) == pytest.approx({"relative_distance": 1})


def test_bad_options():
    with pytest.raises(ValueError, match="--collapse-after must be at least 1"):
        Watched(collapse_after=0)
