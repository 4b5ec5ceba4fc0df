"""Batches gathered on the device are those that the host makes."""

import jax
import numpy as np
import pytest

from jaxai.data import ImageDataset
from jaxai.data.images.domains import unpaired_batches
from jaxai.data.images.stacked import stack_batches
from jaxai.data.pipeline import batches
from jaxai.data.text.corpus import streams, windows
from jaxai.distributed.mesh import make_mesh
from jaxai.distributed.sharding import batch_sharding, put_batch
from jaxai.train import feed
from jaxai.train.feed import feed_of
from tests.helpers import Blobs

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 28, 28, 1), np.uint8)
LABELS = RNG.integers(0, 10, 50).astype(np.int32)
DATA = ImageDataset("numbers", "train", IMAGES, LABELS, 10, "made up", False, "0" * 16)
TEXT = RNG.integers(0, 80, 500)
KINDS = {
    "images": lambda: batches(DATA, 8, seed=1),
    "windows": lambda: windows(TEXT, 8, 16, seed=1),
    "streams": lambda: streams(TEXT, 8, 16),
    "stacks": lambda: stack_batches(IMAGES, 8, seed=1),
    "domains": lambda: unpaired_batches(IMAGES, IMAGES[::2], 8, seed=1),
}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_batches(kind, devices):
    mesh = make_mesh(devices)
    host, resident = KINDS[kind](), KINDS[kind]()
    with jax.set_mesh(mesh):
        found = feed_of(resident, mesh, resident=True)
        gather = jax.jit(found.batch)
        sent = 0
        for number in range(12):
            if number == 5:  # both go on from either's position
                host.set_state(resident.get_state())
                resident.set_state(host.get_state())
            rows, expected = next(found.rows), next(host)
            sent += sum(value.nbytes for value in rows.values())
            made = gather(found.arrays, put_batch(rows, batch_sharding(mesh)))
            assert made.keys() == expected.keys()
            for name, value in expected.items():
                assert made[name].dtype == value.dtype
                np.testing.assert_array_equal(made[name], value)
                assert made[name].sharding.is_equivalent_to(batch_sharding(mesh), value.ndim)
        assert host.get_state() == resident.get_state() == {"next_index": 12}
        assert sent <= 12 * 8 * 12  # at most three numbers for each example
        assert {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found.arrays)} == {True}


@pytest.mark.parametrize("count", [2, 4])
def test_each_process_sends_its_own_rows(count):
    whole = batches(DATA, 8, seed=1)
    parts = [batches(DATA, 8, seed=1, process_index=index, process_count=count) for index in range(count)]
    for _ in range(8):
        together = np.concatenate([next(part.rows)["id"] for part in parts])
        np.testing.assert_array_equal(together, next(whole.rows)["id"])


def test_what_stays_on_the_host(monkeypatch):
    """Any iterator that does not gather, and large data."""
    mesh, blobs = make_mesh(1), Blobs()
    assert feed_of(blobs, mesh, resident=True).rows is blobs
    images = KINDS["images"]()
    assert feed_of(images, mesh, resident=False).rows is images
    monkeypatch.setattr(feed, "RESIDENT_BYTES", IMAGES.nbytes)
    found = feed_of(images, mesh, resident=True)
    assert found.rows is images
    assert not jax.tree.leaves(found.arrays)
    row = next(images)
    assert found.batch((), row) is row
