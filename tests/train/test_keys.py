"""Random streams of one seed: no two of them, and no two seeds, draw the same numbers."""

import jax
import pytest

from jaxai.train.keys import Keys

STREAMS = ["parameters", "steps", "sampling", "evaluation"]
SEEDS = [0, 1, 2, 12345, 2**31 - 1]


def data(key) -> tuple[int, ...]:
    return tuple(jax.random.key_data(key).tolist())


def test_streams_differ_from_each_other_and_between_seeds():
    keys = [getattr(Keys(seed), name) for seed in SEEDS for name in ["root", *STREAMS]]
    assert len({data(key) for key in keys}) == len(SEEDS) * (1 + len(STREAMS))


def test_numbers_of_streams_differ():
    """Also those of the keys of steps, which fold their number into a stream."""
    keys = [getattr(Keys(seed), name) for seed in (0, 1) for name in STREAMS]
    folded = [jax.random.fold_in(key, step) for key in keys for step in range(20)]
    drawn = [float(jax.random.uniform(key)) for key in keys + folded]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_the_same_key_every_time(name):
    keys = Keys(7)
    assert data(getattr(keys, name)) == data(getattr(keys, name)) == data(getattr(Keys(7), name))


@pytest.mark.parametrize("name", ["root", *STREAMS])
def test_streams_are_single_typed_keys(name):
    key = getattr(Keys(3), name)
    assert key.shape == ()
    assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
