"""Array aliases that annotations use: kinds, axes, and that tests check them."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxai import typing
from jaxai.ops.resampling import upscaled
from jaxai.typing import Images, Kernel, Pixels, Samples


def test_images_are_floats_with_four_axes():
    images = jnp.zeros((2, 4, 4, 3))
    assert isinstance(images, Images)
    assert isinstance(images.astype("bfloat16"), Images)
    assert not isinstance(images[0], Images)
    assert not isinstance(images.astype("int32"), Images)
    assert not isinstance(np.zeros((2, 4, 4, 3)), Images)


def test_pixels_are_uint8_of_numpy_or_jax():
    def fits(images):  # isinstance asks a union about classes alone
        return any(isinstance(images, kind) for kind in get_args(Pixels))

    assert fits(np.zeros((2, 4, 4, 1), np.uint8))
    assert fits(jnp.zeros((2, 4, 4, 1), "uint8"))
    assert not fits(np.zeros((2, 4, 4, 1)))
    assert not fits(np.zeros((2, 4, 4), np.uint8))


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 8, 8, 1)])
def test_samples_have_any_shape_behind_the_batch(shape):
    assert isinstance(jnp.zeros(shape), Samples)
    assert not isinstance(jnp.zeros(()), Samples)


def test_kernels_have_four_axes():
    assert isinstance(jnp.zeros((3, 3, 1, 8)), Kernel)
    assert not isinstance(jnp.zeros((3, 3, 8)), Kernel)


def test_wrong_arrays_are_refused_while_tests_run():
    with pytest.raises(TypeCheckError, match="upscaled"):
        upscaled(jnp.zeros((4, 4)), 2)
    assert upscaled(jnp.zeros((1, 4, 4, 1)), 2).shape == (1, 8, 8, 1)
    assert typing.Array is jax.Array
