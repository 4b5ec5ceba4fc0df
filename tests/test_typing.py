"""The legend of dimension letters, and the array aliases that annotations use."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai import typing
from jaxai.typing import Images, Kernel, Pixels, Samples

PACKAGE = Path(typing.__file__).parent
LOCAL = {  # letters that a module explains itself
    "D": "attention",
    "G": "attention",
    "I": "attention",
    "M": "nn",
    "O": "attention",
    "R": "attention",
}


def test_images_are_floats_with_four_axes():
    images = jnp.zeros((2, 4, 4, 3))
    assert isinstance(images, Images)
    assert isinstance(images.astype("bfloat16"), Images)
    assert not isinstance(images[0], Images)
    assert not isinstance(images.astype("int32"), Images)
    assert not isinstance(np.zeros((2, 4, 4, 3)), Images)


def test_pixels_are_uint8_of_numpy_or_jax():
    assert isinstance(np.zeros((2, 4, 4, 1), np.uint8), Pixels)
    assert isinstance(jnp.zeros((2, 4, 4, 1), "uint8"), Pixels)
    assert not isinstance(np.zeros((2, 4, 4, 1)), Pixels)
    assert not isinstance(np.zeros((2, 4, 4), np.uint8), Pixels)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 8, 8, 1)])
def test_samples_have_any_shape_behind_the_batch(shape):
    assert isinstance(jnp.zeros(shape), Samples)
    assert not isinstance(jnp.zeros(()), Samples)


def test_kernels_have_four_axes():
    assert isinstance(jnp.zeros((3, 3, 1, 8)), Kernel)
    assert not isinstance(jnp.zeros((3, 3, 8)), Kernel)


def test_wrong_arrays_are_refused_while_tests_run():
    from jaxai.ops.resampling import upscaled

    with pytest.raises(Exception, match="upscaled"):
        upscaled(jnp.zeros((4, 4)), 2)
    assert upscaled(jnp.zeros((1, 4, 4, 1)), 2).shape == (1, 8, 8, 1)
    assert typing.Array is jax.Array


def letters(path: Path) -> set[str]:
    """Capital letters among the dimensions of a file's array annotations."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
            for part in node.slice.elts[1:]:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    found |= set(re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", part.value))
    return found


def test_every_dimension_letter_is_in_the_legend():
    legend = set(re.findall(r"\b([A-Z]) [a-z]", typing.__doc__)) | {"K", "N", "T"}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0]
        own = {letter for letter, owner in LOCAL.items() if owner == part}
        assert letters(path) <= legend | own, path
