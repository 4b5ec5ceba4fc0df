"""The dense layer against a product, to second order, and apart from what follows it on a CPU."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jaxai.ops.dense import dense
from tests.ops.oracle import TOLERANCE, assert_maps, assert_same_derivatives, assert_scans, draw


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_derivatives_are_the_product_s(shape, dtype):
    plain = lambda x, w, b: jnp.einsum("...i,io->...o", x, w) + b.reshape((1,) * (x.ndim - 1) + (-1,))  # noqa: E731
    assert_same_derivatives(dense, plain, (shape, (5, 4), (4,)), dtype, TOLERANCE[dtype])


def test_maps_and_scans():
    x, w = draw((3, 4), (4, 4))
    assert_maps(dense, (x, w), [(0, 0), (0, None), (None, 0)], TOLERANCE["float32"])
    assert_scans(lambda x: dense(x, w), x, TOLERANCE["float32"])


def test_the_barrier_is_for_cpu_alone():
    arguments = draw((3, 4), (4, 4))
    for platform, barrier in [("cpu", True), ("cuda", False), ("tpu", False)]:
        exported = export.export(jax.jit(jax.grad(lambda x, w: dense(x, w).sum(), 1)), platforms=[platform])
        assert ("optimization_barrier" in exported(*arguments).mlir_module()) == barrier


@pytest.mark.parametrize(("kernel", "bias"), [((5, 4), None), ((4, 5), (4,))])
def test_bad_shapes(kernel, bias):
    x, w, b = draw((3, 4), kernel, bias or (1,))
    with pytest.raises(ValueError, match=r"give kernel \[4, O\] and bias \[O\]"):
        dense(x, w, None if bias is None else b)
