"""The fixed digit classifier: its file, its shapes, and its accuracy on the official test set."""

import gzip
import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.metrics import digits
from jaxai.ops.pixels import to_signed

REPOSITORY = Path(__file__).parents[2]


def official(name: str) -> np.ndarray:
    """One official idx.gz file, read without the package; skips the test where it is missing."""
    for root in (os.environ.get("JAXAI_DATA"), REPOSITORY.parent / "shared" / "data"):
        path = Path(root or ".") / "mnist" / name
        if root and path.exists():
            data = gzip.decompress(path.read_bytes())
            header = 4 + 4 * data[3]
            return np.frombuffer(data, np.uint8, offset=header).reshape(np.frombuffer(data[4:header], ">i4"))
    pytest.skip(f"{name} is in neither JAXAI_DATA nor ../shared/data")


def test_shapes_and_size(key):
    params = jax.jit(digits.init)(key)
    logits, features = jax.jit(digits.apply)(params, np.zeros((3, 28, 28, 1)))
    assert (logits.shape, features.shape) == ((3, 10), (3, 64))
    assert sum(array.size for array in params.values()) <= 100_000
    assert jax.tree.map(jnp.shape, digits.load()) == jax.tree.map(jnp.shape, params)


def test_file_is_the_one_named_in_the_module(monkeypatch):
    path = REPOSITORY / "jaxai" / "metrics" / "files" / "digits.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digits.SHA256
    assert path.stat().st_size <= 400_000
    assert digits.SHA256 in (path.parent / "README.md").read_text()
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="expected 0000"):
        digits.load()


def test_batches_do_not_change_the_result():
    images = np.random.default_rng(0).integers(0, 256, (501, 28, 28, 1), np.uint8)
    features, labels = digits.features_and_labels(images)
    assert (features.shape, features.dtype, labels.shape) == ((501, 64), np.float32, (501,))
    logits, expected = jax.jit(lambda images: digits.apply(digits.load(), to_signed(images)))(images[-3:])
    np.testing.assert_allclose(features[-3:], expected, rtol=1e-4, atol=1e-5)  # float32, another batch size
    assert (labels[-3:] == logits.argmax(-1)).all()
    assert digits.features_and_labels(jnp.asarray(images[:1]))[0].shape == (1, 64)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 28, 28, 1)), np.zeros((2, 28, 28), np.uint8), np.zeros((0, 28, 28, 1), np.uint8)]
)
def test_bad_images(images):
    with pytest.raises(ValueError, match=r"images: .*, give uint8 images of shape"):
        digits.features_and_labels(images)


def test_accuracy_on_the_official_test_set():
    images, labels = official("t10k-images-idx3-ubyte.gz"), official("t10k-labels-idx1-ubyte.gz")
    _, predicted = digits.features_and_labels(images[..., None])
    assert np.mean(predicted == labels) >= 0.993
