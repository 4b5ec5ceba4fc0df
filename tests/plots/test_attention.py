"""Pictures of attention: maps, statistics, readings of a story."""

import numpy as np
import pytest
from PIL import Image

from jaxai import plots


def test_attention_pictures(tmp_path):
    weights = np.full((2, 3, 4, 5), 0.2)
    plots.save_attention_maps(tmp_path / "maps.png", weights, list("abcd"), list("vwxyz"))
    plots.save_attention_statistics(tmp_path / "long.png", np.ones((2, 40, 3)), np.ones((2, 50, 3)))
    for name in ("maps.png", "long.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture))) > 10
    with pytest.raises(ValueError, match="3 queries, 5 keys"):
        plots.save_attention_maps(tmp_path / "maps.png", weights, list("abc"), list("vwxyz"))
    with pytest.raises(ValueError, match=r"give finite \[layers, T, N\]"):
        plots.save_attention_statistics(tmp_path / "long.png", np.ones((2, 40, 3)), np.ones((2, 50, 4)))


def test_readings(tmp_path):
    path, weights = tmp_path / "reading.png", np.full((2, 3, 4), 0.25)
    plots.save_reading(path, weights, ["where is the apple?", "mary went home", "* john got the apple", "it rained"])
    with Image.open(path) as picture:
        assert min(picture.size) > 80
    for bad in (weights[..., :3], weights * np.nan):
        with pytest.raises(ValueError, match="4 sentences, all must be finite"):
            plots.save_reading(tmp_path / "bad.png", bad, ["a", "b", "c", "d"])
    assert not (tmp_path / "bad.png").exists()
