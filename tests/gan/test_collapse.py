"""The collapse monitor: its measurements, and its actions."""

import json
import logging

import numpy as np
import pytest

from jaxai.errors import Rollback, Stopped
from jaxai.gan.collapse import CollapseConfig, CollapseMonitor
from jaxai.run.folder import Run

REAL = np.random.default_rng(0).normal(size=(200, 6))
LABELS = np.arange(200) % 10


def monitor(policy):
    return CollapseMonitor(CollapseConfig(on_collapse=policy, collapse_after=100), REAL, LABELS)


@pytest.fixture
def run(tmp_path):
    """A run whose evaluations at steps 50 and 150 are good, those at 100 and 200 are not."""
    rows = [{"step": 50, "relative_distance": 0.5}, {"step": 51, "loss": 1.0}, {"step": 100, "relative_distance": 0.4}]
    rows.append({"step": 150, "relative_distance": 0.9, "relative_classes": 0.9})
    rows.append({"step": 200, "relative_distance": 0.9, "relative_classes": 0.2})
    run = Run(tmp_path)
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_real_examples_are_as_varied_as_themselves(run):
    found = monitor("stop").measure(REAL, LABELS)
    assert found == pytest.approx({"relative_distance": 1, "relative_classes": 1})
    assert monitor("stop").act(run, 1000, found) == found


SIGNS = [
    pytest.param(REAL / 4, LABELS, "its samples lie 0.25 as far apart as real ones", id="near"),
    pytest.param(REAL, LABELS % 4, "it makes 0.39 as many classes", id="classes"),
    pytest.param(REAL * 0, LABELS * 0, "lie 0.00 as far .* and it makes 0.10", id="one"),
]


@pytest.mark.parametrize(("samples", "labels", "words"), SIGNS)
def test_a_collapse_is_reported_once_stops_or_rolls_back(run, samples, labels, words, caplog):
    found = monitor("warn").measure(samples, labels)
    caplog.set_level(logging.WARNING, "jaxai")
    careful = monitor("warn")
    for step in (50, 100, 150):
        assert careful.act(run, step, found) == found
    (record,) = caplog.records
    assert record.getMessage().startswith("step 100: the generator has collapsed")
    with pytest.raises(Stopped, match=words):
        monitor("stop").act(run, 150, found)
    with pytest.raises(Rollback, match=words) as rollback:
        monitor("rollback").act(run, 150, found)
    assert rollback.value.last_good_step == 150
    assert monitor("stop").act(run, 50, found) == found


def test_a_second_collapse_is_reported_again(run, caplog):
    careful = monitor("warn")
    bad, good = careful.measure(REAL / 4, LABELS), careful.measure(REAL, LABELS)
    for step, found in enumerate([bad, bad, good, bad], 200):
        careful.act(run, step, found)
    assert [record.getMessage()[:8] for record in caplog.records] == ["step 200", "step 203"]


def test_a_run_that_was_never_well_starts_over(tmp_path):
    run = Run(tmp_path)
    run.metrics.write_text('{"step": 0, "relative_distance": 0.1}\n{"step": 1, "loss": 2.0}\n')
    with pytest.raises(Rollback) as rollback:
        CollapseMonitor(CollapseConfig(on_collapse="rollback", collapse_after=1), REAL).act(
            run, 50, {"relative_distance": 0.1}
        )
    assert rollback.value.last_good_step == 0


def test_without_a_classifier_the_distance_alone_counts():
    plain = CollapseMonitor(CollapseConfig(), REAL)
    assert plain.measure(REAL) == pytest.approx({"relative_distance": 1})


def test_bad_options():
    with pytest.raises(ValueError, match="--collapse-after must be at least 1"):
        CollapseConfig(collapse_after=0)


def test_evaluations_are_saved_where_a_collapse_leads_back_to_one():
    assert CollapseConfig(on_collapse="rollback").save_evaluations
    assert CollapseConfig(keep_lowest=("loss",)).save_evaluations
    assert not CollapseConfig(on_collapse="stop").save_evaluations
