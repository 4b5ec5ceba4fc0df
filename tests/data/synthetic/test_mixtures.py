"""Points from mixtures: where they lie, and an iterator that goes on where it was."""

import numpy as np
import pytest

from jaxai.data.synthetic.mixtures import MIXTURES, point_batches


@pytest.mark.parametrize(("name", "modes"), [("ring", 8), ("grid", 25)])
def test_points_lie_around_their_modes(name, modes):
    mixture = MIXTURES[name]
    assert mixture.centres.shape == (modes, 2)
    points = mixture.draw(20_000, 0)
    distances = np.linalg.norm(points[:, None] - mixture.centres, axis=-1)
    assert set(distances.argmin(1)) == set(range(modes))
    # a radius in the plane: its mean square is twice the variance
    assert np.sqrt((distances.min(1) ** 2).mean() / 2) == pytest.approx(mixture.deviation, rel=0.02)


def test_batches_go_on_where_they_were_and_processes_share_them():
    batches = point_batches(MIXTURES["grid"], 4, 16, seed=3)
    first, second = next(batches)["points"], next(batches)["points"]
    assert first.shape == (4, 16, 2)
    assert first.dtype == np.float32
    assert not np.array_equal(first[0], first[1])
    again = point_batches(MIXTURES["grid"], 4, 16, seed=3)
    again.set_state({"next_index": 1})
    np.testing.assert_array_equal(next(again)["points"], second)
    half = point_batches(MIXTURES["grid"], 4, 16, seed=3, process_index=1, process_count=2)
    np.testing.assert_array_equal(next(half)["points"], first[2:])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"count": 3, "process_count": 2}, "count is 3; choose at least 1, and a multiple of the 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"count": 0}, "count is 0"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_sizes(arguments, word):
    with pytest.raises(ValueError, match=word):
        point_batches(**{"mixture": MIXTURES["ring"], "count": 2, "batch_size": 4, "seed": 0} | arguments)
