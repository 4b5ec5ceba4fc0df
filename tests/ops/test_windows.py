"""Windows over images: shifted views against slices, padding against `jax.lax`, and bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from jaxai.ops.windows import check_padding, choose, pair, shift_pad, taps, window_pads

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(window=pairs, strides=pairs, dilation=pairs, more=st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_taps_are_strided_slices(window, strides, dilation, more):
    height, width = ((k - 1) * d + 1 + m for k, d, m in zip(window, dilation, more, strict=True))
    x = np.arange(2 * height * width * 2, dtype=np.float32).reshape(2, height, width, 2)
    found = taps(jnp.asarray(x), window, strides, dilation)
    rows, columns = ((m // s) + 1 for m, s in zip(more, strides, strict=True))
    assert len(found) == window[0] * window[1]
    for number, view in enumerate(found):
        top, left = (number // window[1]) * dilation[0], (number % window[1]) * dilation[1]
        expected = x[:, top :: strides[0], left :: strides[1]][:, :rows, :columns]
        np.testing.assert_array_equal(view, expected)


@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    window=pairs,
    strides=pairs,
    padding=st.sampled_from(["SAME", "VALID"]),
)
def test_named_padding_is_that_of_lax(size, window, strides, padding):
    shape = (1, *size, 1)
    pads = window_pads(shape, window, strides, padding)
    assert pads == [tuple(map(int, axis)) for axis in lax.padtype_to_pads(size, window, strides, padding)]
    assert window_pads(shape, window, strides, pads) == pads


def test_shift_pad_pads_and_crops():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    padded = shift_pad(x, ((1, 0), (0, 2)), fill=-1.0)
    np.testing.assert_array_equal(padded, np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=-1))
    np.testing.assert_array_equal(shift_pad(x, ((-1, 0), (0, -2))), x[:, 1:, :2])
    assert shift_pad(x, ((0, 0), (0, 0))) is x


def test_a_window_that_does_not_fit_is_refused():
    message = r"padding='VALID' leaves x of shape \(1, 2, 5, 1\) at \[2, 5\], smaller than the window \(3, 3\)"
    with pytest.raises(ValueError, match=message):
        window_pads((1, 2, 5, 1), (3, 3), (1, 1), "VALID")
    assert window_pads((1, 2, 5, 1), (3, 3), (1, 1), "SAME") == [(1, 1), (1, 1)]


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 1), (2, 3)), [[0, 0], [-1, 2]]])
def test_good_padding(padding):
    check_padding(padding)


@pytest.mark.parametrize("padding", ["same", "FULL", 1, (1, 1), ((0, 1),), ((0, 1), (1,)), None])
def test_bad_padding(padding):
    with pytest.raises(ValueError, match="give 'SAME', 'VALID' or two pairs"):
        check_padding(padding)


@pytest.mark.parametrize(("value", "expected"), [(3, (3, 3)), ((1, 2), (1, 2)), ([4, 5], (4, 5))])
def test_pairs(value, expected):
    assert pair("strides", value) == expected


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", (1, 0), (1, 2, 3), None])
def test_bad_pairs(value):
    with pytest.raises(ValueError, match=r"strides=.*: give a positive integer or a pair of them"):
        pair("strides", value)


FORMS = {"lax": lambda x: x + 1, "slices": lambda x: x + 2}


def test_a_named_implementation_is_taken():
    assert choose(FORMS, "lax", True) is FORMS["lax"]
    assert choose(FORMS, "slices", False) is FORMS["slices"]
    assert choose(FORMS, None, False) is FORMS["lax"]


def test_a_fast_implementation_is_taken_on_a_cpu_alone():
    chosen = choose(FORMS, None, True)
    assert float(jax.jit(chosen)(jnp.zeros(()))) == 2
    exported = jax.export.export(jax.jit(chosen), platforms=["cuda"])(jnp.zeros(()))
    assert "1.000000e+00" in exported.mlir_module()
    assert "2.000000e+00" not in exported.mlir_module()


def test_an_unknown_implementation_names_the_known():
    with pytest.raises(ValueError, match=r"implementation='fft' is unknown; choose one of \['lax', 'slices'\] or None"):
        choose(FORMS, "fft", True)
