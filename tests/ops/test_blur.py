"""Resampling with a blur: the oracle and `lax`, what the filter promises, all derivatives."""

import functools
import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxai.ops.pool import blur_downsample, blur_upsample
from tests.ops import reference
from tests.ops.oracle import assert_close, assert_maps, assert_same_derivatives, assert_scans, compiled, draw

ORACLES = {blur_downsample: reference.blur_downsample, blur_upsample: reference.blur_upsample}
OPS = {op.__name__: op for op in ORACLES}
WEIGHTS = [(1, 2, 1), (1, 3, 3, 1), (1, 4, 6, 4, 1)]


SHAPE = (2, 8, 6, 3)


@functools.cache
def blur(name, weights):
    """The compiled op, one for all tests."""
    return compiled(lambda x: OPS[name](x, weights))


def by_lax(name, weights):
    """A depthwise convolution with stride 2, or of the spread image."""
    size, low = len(weights), (len(weights) - 1) // 2

    def f(x):
        kernel = jnp.outer(*2 * [jnp.asarray(weights, x.dtype) / sum(weights)])
        kernel = jnp.tile(kernel.reshape(size, size, 1, 1), (1, 1, 1, x.shape[3]))
        options = {"feature_group_count": x.shape[3], "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        if name == "blur_downsample":
            return lax.conv_general_dilated(x, kernel, (2, 2), [(low, size // 2)] * 2, **options)
        pads = [(size - 1 - low, low + 1)] * 2
        return lax.conv_general_dilated(x, 4 * kernel, (1, 1), pads, lhs_dilation=(2, 2), **options)

    return f


@pytest.mark.parametrize("weights", [*WEIGHTS, (1, 2, 1, 0)])
@pytest.mark.parametrize("name", OPS)
def test_forward_is_the_oracle(name, weights):
    for shape in (SHAPE, (1, 5, 3, 2)):
        (x,) = draw(shape)
        assert_close(blur(name, weights)(x), ORACLES[OPS[name]](np.asarray(x), weights), 1e-6)


@pytest.mark.parametrize("weights", WEIGHTS[:2])
@pytest.mark.parametrize("name", OPS)
def test_derivatives_are_those_of_lax(name, weights):
    forms = lambda x: OPS[name](x, weights), by_lax(name, weights)
    assert_same_derivatives(*forms, [(2, 5, 4, 2)], "float64", 1e-10)


@pytest.mark.parametrize("name", OPS)
def test_vmap_and_scan(name):
    arguments = draw((1, 4, 4, 2))
    assert_maps(OPS[name], arguments, [(0,)], 1e-6)
    assert_scans(OPS[name], *arguments, 1e-6)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_constant_stays_constant_inside(weights):
    x = np.full(SHAPE, 0.7, np.float32)
    for name, edge in (("blur_downsample", 1), ("blur_upsample", 2)):
        y = blur(name, weights)(x)
        np.testing.assert_allclose(y[:, edge:-edge, edge:-edge], 0.7, rtol=1e-6)
        assert np.abs(y - 0.7).max() > 0.1  # zeros outside


@pytest.mark.parametrize("weights", WEIGHTS)
def test_up_is_four_times_the_adjoint_of_down(weights):
    x, y = map(np.asarray, draw((2, 16, 12, 3), SHAPE))
    down, up = blur("blur_downsample", weights)(x), blur("blur_upsample", weights)(y)
    np.testing.assert_allclose(4 * np.vdot(down, y), np.vdot(x, up), rtol=1e-4)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sums_stay_and_energy_does_not_grow(weights):
    x = np.zeros(SHAPE, np.float32)
    x[:, 3:5, 3:4] = draw((2, 2, 1, 3))[0]  # the filter must not reach over the edge
    down, up = (np.asarray(blur(name, weights)(x)) for name in ("blur_downsample", "blur_upsample"))
    np.testing.assert_allclose([4 * down.sum(), up.sum() / 4], x.sum(), rtol=1e-5)
    assert (down**2).sum() <= (x**2).sum()
    assert (up**2).sum() <= 4 * (x**2).sum()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_checkerboard_leaves_no_alias(weights):
    rows, columns = np.ogrid[:8, :6]
    x = np.broadcast_to((1 - 2 * ((rows + columns) % 2)).reshape(1, 8, 6, 1), SHAPE).astype(np.float32)
    assert (x[:, ::2, ::2] == 1).all()  # so a constant, without the filter
    np.testing.assert_allclose(blur("blur_downsample", weights)(x)[:, 1:-1, 1:-1], 0, atol=1e-6)


@pytest.mark.parametrize("name", OPS)
def test_centred_weights_commute_with_mirrors(name):
    x, op = np.asarray(draw(SHAPE)[0]), blur(name, (1, 3, 3, 1))
    np.testing.assert_allclose(op(x[:, ::-1, ::-1]), op(x)[:, ::-1, ::-1], atol=1e-6)
    off = blur(name, (1, 2, 1))
    assert np.abs(off(x[:, ::-1, ::-1]) - off(x)[:, ::-1, ::-1]).max() > 0.1  # half a pixel apart


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        ((4, 4, 3), (1, 2, 1), r"x has shape \(4, 4, 3\): give it as \[B, H, W, C\]"),
        ((1, 4, 4, 3), (1, 1, 1), r"weights=\(1, 1, 1\): every second one must sum to half of all.*\(1, 2, 1\)"),
        ((1, 4, 4, 3), (1,), "weights="),
        ((1, 4, 4, 3), (), "weights="),
        ((1, 4, 4, 3), (1, -1, -1, 1), "more than 0"),
    ],
)
def test_bad_input(x, weights, message):
    for op in OPS.values():
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(op)(jnp.zeros(x), weights)
