"""The short form of the table: the promises that no other file tests. They start commands often, so they are slow."""

import pytest

from tests.faults.__main__ import ROWS

ELSEWHERE = {"malformed", "soak", "mutations"}  # in test_malformed; soak, mutations in test_untrusted


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name not in ELSEWHERE])
def test_promise(name, tmp_path):
    assert ROWS[name].function(tmp_path, ROWS[name].short)
