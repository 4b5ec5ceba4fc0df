"""Where batches and states lie: one rule, said in one line."""

import logging

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from jaxai.distributed.mesh import make_mesh
from jaxai.distributed.sharding import partition, state_sharding
from jaxai.train.state import TrainState


@pytest.mark.parametrize(
    ("shape", "parts", "spec"),
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
