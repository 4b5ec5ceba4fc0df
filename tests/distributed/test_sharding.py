"""Where batches and states lie: one rule, said in one line."""

import logging

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from jaxai.config import mesh_axes
from jaxai.distributed.cluster import is_loopback
from jaxai.distributed.mesh import make_mesh, processes
from jaxai.distributed.sharding import partition, state_sharding
from jaxai.train.state import TrainState


def test_a_mesh_of_all_devices_splits_the_batch():
    assert dict(make_mesh().shape) == {"data": 4, "model": 1}
    assert dict(make_mesh(2).shape) == {"data": 2, "model": 1}
    assert dict(make_mesh(shape="data=2,model=2").shape) == {"data": 2, "model": 2}
    assert dict(make_mesh(shape="data=3").shape) == {"data": 3, "model": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": "data=8"}, "--mesh data=8 is of 8 devices, but there are 4"),
        ({"shape": "data=2,model=2", "batch_size": 3}, "--batch-size 3 does not divide over 2 devices"),
        ({"devices": 4, "batch_size": 6}, "--batch-size 6 does not divide over 4 devices"),
        ({"shape": "model=2"}, "--mesh must look like"),
    ],
)
def test_meshes_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(**options)


def test_axes():
    assert mesh_axes("") == {}
    assert mesh_axes("data=4,model=2") == {"data": 4, "model": 2}
    assert mesh_axes("data=4") == {"data": 4, "model": 1}
    for wrong in ("data=", "data=-1", "data=2 model=2", "data=2,model=0", "data=1e3"):
        with pytest.raises(ValueError, match="--mesh must look like"):
            mesh_axes(wrong)


def test_one_process_reads_everything():
    for mesh in (make_mesh(), make_mesh(shape="data=2,model=2")):
        assert processes(mesh) == {"process_index": 0, "process_count": 1}


@pytest.mark.parametrize(
    ("shape", "accumulation_steps", "spec"),
    [
        ((64, 128), {"data": 4}, PartitionSpec(None, "data")),
        ((128, 64), {"data": 4}, PartitionSpec("data")),
        ((64, 128), {"model": 2, "data": 4}, PartitionSpec("data", "model")),
        ((63, 128), {"model": 2, "data": 4}, PartitionSpec(None, "model")),
        ((63, 127), {"model": 2, "data": 4}, PartitionSpec()),
        ((32, 64), {"data": 4}, PartitionSpec()),  # fewer than 4,096
        ((64, 128), {}, PartitionSpec()),
        ((), {"data": 4}, PartitionSpec()),
    ],
)
def test_the_largest_axis_that_divides_is_split(shape, parts, spec):
    assert partition(shape, parts) == spec


def test_a_state_says_how_much_of_it_is_split(caplog):
    caplog.set_level(logging.INFO, "jaxai")
    params = {"kernel": jnp.zeros((64, 128)), "odd": jnp.zeros((63, 127)), "bias": jnp.zeros(128)}
    state = TrainState(jnp.zeros((), "int32"), params, None, {}, jax.random.key(0), {"h": jnp.zeros((8, 3))})
    found = state_sharding(state, make_mesh(), shard_parameters=True)
    assert found.params["kernel"].spec == PartitionSpec(None, "data")
    assert found.params["odd"].spec == PartitionSpec()
    assert found.carry["h"].spec == PartitionSpec("data")
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 of 6 arrays, with 8216 of 16347 elements, are split over data=4; the largest that is not: params/odd, 8001"
    )
    assert state_sharding(state, make_mesh()).params["kernel"].spec == PartitionSpec()


def test_loopback():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("example.org", "10.0.0.1", "0.0.0.0")))
