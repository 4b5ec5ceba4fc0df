"""Checkpoints: what was saved comes back, and another model's is refused by the name of the array that differs."""

from contextlib import closing

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxai.train.checkpoint import Checkpoints
from jaxai.train.sharding import make_mesh, state_sharding
from jaxai.train.supervised import init_state
from tests.helpers import same_bits


def state_of(params: dict, *, tx=None, seed_type: str | None = None, keep_average: bool = False):
    key = jax.random.key(1, impl=seed_type)
    return init_state(params, tx or optax.adam(1e-3), key, keep_average=keep_average)


def params_of(inputs: int = 3, dtype: str = "float32", **more) -> dict:
    return {"dense": {"kernel": jnp.ones((inputs, 4), dtype), "bias": jnp.zeros(4)}, **more}


def restore(folder, state):
    shapes = jax.eval_shape(lambda: state)
    with closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.restore(5, shapes, state_sharding(shapes, make_mesh(1)))


@pytest.fixture
def folder(tmp_path):
    with closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(5, state_of(params_of()), {"batches": {"next_index": 5}})
    return tmp_path / "checkpoints"


def test_the_same_model_comes_back(folder):
    state, host = restore(folder, state_of(params_of()))
    assert same_bits(state, state_of(params_of()))
    assert host == {"batches": {"next_index": 5}}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: state_of(params_of(inputs=1)), r"params/dense/kernel is float32\[3, 4\], not float32\[1, 4\]"),
        (
            lambda: state_of(params_of(dtype="bfloat16")),
            r"params/dense/kernel is float32\[3, 4\], not bfloat16\[3, 4\]",
        ),
        (lambda: state_of(params_of(more=jnp.ones(()))), r"params/more is absent, not float32\[\]"),
        (lambda: state_of({"bias": jnp.zeros(4)}), r"params/bias is absent, not float32\[4\]"),
        (lambda: state_of(params_of(), tx=optax.sgd(1e-3)), r"opt_state/0/count is int32\[\], not absent"),
        (lambda: state_of(params_of(), keep_average=True), r"average/dense/bias is absent, not float32\[4\]"),
        (lambda: state_of(params_of(), seed_type="rbg"), r"key is uint32\[2\], not uint32\[4\]"),
    ],
)
def test_another_model_is_refused_by_name(folder, other, difference):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(
        ValueError, match=rf"checkpoints/5 is a checkpoint of another model: {difference}: use"
    ) as caught:
        restore(folder, other())
    assert "\n" not in str(caught.value)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
