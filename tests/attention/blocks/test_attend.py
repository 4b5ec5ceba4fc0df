"""The forward pass by blocks: the order in which it visits them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxai.attention.blocks.attend import tall_visits


@given(st.integers(1, 17), st.integers(1, 6), st.integers(0, 3), st.integers(0, 99))
def test_every_block_is_visited_once_by_itself_or_among_others(rows, cols, power, seed):
    rng = np.random.default_rng(seed)
    nonempty = rng.random((rows, cols)) < 0.9
    full = nonempty & (rng.random((rows, cols)) < 0.8)
    group, classes = tall_visits(nonempty, full, 2**power)
    assert group <= 2**power
    assert rows % group == 0
    visits = np.zeros((rows, cols), int)
    for masked, size, *table in classes:
        count, inner_rows, columns = map(np.asarray, table)
        for i, n in enumerate(count):
            for row, col in zip(inner_rows[i, :n], columns[i, :n], strict=True):
                blocks = slice(i * group + row * size, i * group + (row + 1) * size), col
                visits[blocks] += 1
                assert (nonempty & ~full if masked else full)[blocks].all()
    np.testing.assert_array_equal(visits, nonempty)
