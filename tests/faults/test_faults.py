"""The short form of the table: flipped bits in each run of the suite, the others among the slow tests."""

import pytest

from tests.faults.__main__ import ROWS

ELSEWHERE = {"malformed", "soak", "offline", "mutations"}  # the first in test_malformed, two in test_untrusted
SHORT = [
    pytest.param(name, marks=[] if name == "flips" else pytest.mark.slow) for name in ROWS if name not in ELSEWHERE
]
"""Many starts of a command each, but for the flips."""


@pytest.mark.parametrize("name", SHORT)
def test_promise(name, tmp_path):
    assert ROWS[name].function(tmp_path, ROWS[name].short)
