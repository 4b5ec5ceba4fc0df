"""Parameters to a safetensors file and back."""

import re

import jax
import numpy as np
import pytest

from jaxai.train.weights import fill, load_weights, save_weights

PARAMS = {"block": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "bias": np.ones(3, np.float32)}


def test_round_trip(tmp_path):
    file = tmp_path / "model.safetensors"
    save_weights(file, PARAMS)
    arrays = load_weights(file)
    assert sorted(arrays) == ["bias", "block.kernel"]
    again = fill(jax.eval_shape(lambda: PARAMS), arrays, file)
    jax.tree.map(np.testing.assert_array_equal, again, PARAMS)
    before = file.read_bytes()
    save_weights(file, dict(reversed(PARAMS.items())))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"bias": np.ones(3)}, "block.kernel is absent, not (2, 3)"),
        ({"bias": np.ones(3), "block.kernel": np.ones((3, 2))}, "block.kernel is (3, 2), not (2, 3)"),
        ({"bias": np.ones(3), "block.kernel": np.ones((2, 3)), "more": np.ones(1)}, "more is (1,), not absent"),
    ],
)
def test_another_model(arrays, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        fill(PARAMS, arrays, tmp_path)


def test_weights_know_their_vocabulary(tmp_path):
    file = tmp_path / "model.safetensors"
    save_weights(file, PARAMS, {"characters": "ab", "size": 2})
    for fine in (None, {"size": 2, "characters": "ab"}):
        assert load_weights(file, fine).keys() == {"bias", "block.kernel"}
    with pytest.raises(ValueError, match="was trained with another vocabulary than the one beside it"):
        load_weights(file, {"characters": "ba", "size": 2})
    save_weights(file, PARAMS)  # such as another program's: it can't be told
    assert load_weights(file, {"characters": "ba"}).keys() == {"bias", "block.kernel"}


def test_bad_files(tmp_path):
    file = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_weights(file)
    file.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="no safetensors file or damaged"):
        load_weights(file)
