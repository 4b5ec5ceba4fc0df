"""The short form of the table: every promise is put to the test in each run of the suite."""

import pytest

from tests.faults import promises

SHORT = {
    promises.kills: 20,
    promises.signals: 4,
    promises.second_signals: 2,
    promises.flips: 200,
    promises.damage: 1,
    promises.full_disk: 1,
    promises.read_only: 2,
    promises.ranks: 2,
    promises.determinism: 1,
    promises.not_finite: 3,
}


@pytest.mark.parametrize("promise", SHORT, ids=lambda promise: promise.__name__)
def test_promise(promise, tmp_path):
    assert promise(tmp_path, SHORT[promise])
