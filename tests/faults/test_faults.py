"""The short form of the table: flipped bits in every run of the suite, the other promises among the slow tests."""

import pytest

from tests.faults.__main__ import ROWS

ELSEWHERE = {"malformed", "soak", "mutations"}  # in test_malformed; soak, mutations in test_untrusted
SHORT = [
    pytest.param(name, marks=[] if name == "flips" else pytest.mark.slow) for name in ROWS if name not in ELSEWHERE
]
"""Many starts of a command each, but for the flips."""


@pytest.mark.parametrize("name", SHORT)
def test_promise(name, tmp_path):
    assert ROWS[name].function(tmp_path, ROWS[name].short)
