"""A function over many examples in batches of one size."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxai.ops.batched import map_batches


@given(n=st.integers(1, 20), batch_size=st.integers(1, 25))
def test_any_number_of_examples_in_any_batch_size(n, batch_size):
    examples = {"x": np.arange(n, dtype=np.float32), "y": np.arange(2 * n).reshape(n, 2)}
    sizes = []

    def function(batch):
        sizes.append(len(batch["x"]))
        return {"double": 2 * batch["x"], "sum": batch["y"].sum(1)}

    results = map_batches(function, examples, batch_size)
    assert set(sizes) == {batch_size}
    assert len(sizes) == -(-n // batch_size)
    np.testing.assert_array_equal(results["double"], 2 * examples["x"], strict=True)
    np.testing.assert_array_equal(results["sum"], examples["y"].sum(1), strict=True)


def test_one_compiled_program_serves_every_number_of_examples():
    traced = []

    @jax.jit
    def function(x):
        traced.append(x.shape)
        return jnp.sin(x)

    for n in (1, 7, 23):
        x = np.linspace(0, 1, n, dtype=np.float32)
        result = map_batches(function, x, batch_size=5)
        assert isinstance(result, np.ndarray)
        np.testing.assert_allclose(result, np.sin(x), rtol=1e-6)
    assert traced == [(5,)]


def test_results_keep_their_further_axes_and_types():
    first, second = map_batches(lambda x: (x[:, None] > 1, x.astype("int8")), np.arange(3), batch_size=2)
    assert (first.shape, first.dtype, second.dtype) == ((3, 1), bool, np.int8)
