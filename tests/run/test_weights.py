"""Parameters to a safetensors file and back."""

import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from jaxai.run.weights import fill, load_weights, save_weights

PARAMS = {"block": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "bias": np.ones(3, np.float32)}
CONFIG = {"experiment": "test", "seed": 3}


def test_round_trip(tmp_path):
    file = tmp_path / "model.safetensors"
    save_weights(file, PARAMS, CONFIG)
    arrays = load_weights(file)
    assert sorted(arrays) == ["bias", "block.kernel"]
    again = fill(jax.eval_shape(lambda: PARAMS), arrays, file)
    jax.tree.map(np.testing.assert_array_equal, again, PARAMS)
    before = file.read_bytes()
    save_weights(file, dict(reversed(PARAMS.items())), CONFIG)
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
    save_weights(file, PARAMS, CONFIG, {"characters": "ab", "size": 2})
    for fine in (None, {"size": 2, "characters": "ab"}):
        assert load_weights(file, fine).keys() == {"bias", "block.kernel"}
    with pytest.raises(ValueError, match="was trained with another vocabulary than the one beside it"):
        load_weights(file, {"characters": "ba", "size": 2})
    save_weights(file, PARAMS, CONFIG)  # such as another program's: it can't be told
    assert load_weights(file, {"characters": "ba"}).keys() == {"bias", "block.kernel"}


def test_bad_files(tmp_path):
    file = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_weights(file)
    file.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        load_weights(file)


def test_weights_know_their_config_and_a_flipped_bit_is_found(tmp_path):
    file = tmp_path / "model.safetensors"
    save_weights(file, PARAMS, CONFIG)
    with safe_open(file, "numpy") as opened:
        assert json.loads(opened.metadata()["jaxai"])["config"] == CONFIG
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in rng.integers(start, len(whole), 20):
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            load_weights(file)


def test_weights_of_another_program_have_no_hash(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors.numpy.save({"a": np.ones(2)}))
    assert load_weights(file).keys() == {"a"}
