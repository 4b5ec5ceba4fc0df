"""The short form of the table: every run of the suite tests every promise."""

import pytest

from tests.faults.__main__ import ROWS

ELSEWHERE = {"malformed", "soak", "offline", "mutations"}  # in test_malformed; soak, mutations in test_untrusted
SHORT = [name for name in ROWS if name not in ELSEWHERE]


@pytest.mark.parametrize("name", SHORT)
def test_promise(name, tmp_path):
    assert ROWS[name].function(tmp_path, ROWS[name].short)
