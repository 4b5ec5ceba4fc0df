"""The multilayer perceptron: Flax's Dense layers as oracle, leading axes, derivatives, bad sizes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxai.nn.mlp import MLP, mlp
from tests.helpers import normal


@pytest.mark.parametrize("activation", [nn.relu, jnp.tanh])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 4)])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_outputs_are_those_of_dense_layers(shape, hidden, activation, key):
    x = jnp.asarray(normal(*shape))
    network = MLP(hidden, 6, activation)
    outputs, variables = network.init_with_output(key, x)
    params = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])  # biases that are not zero
    desired = x
    for index, features in enumerate([*hidden, 6]):
        layer = {"params": {name: params[f"{name}_{index}"] for name in ("kernel", "bias")}}
        desired = nn.Dense(features).apply(layer, activation(desired) if index else desired)
    assert outputs.shape == (*shape[:-1], 6)
    # float32 sums of at most 7 terms
    np.testing.assert_allclose(network.apply({"params": params}, x), desired, rtol=1e-5, atol=1e-5)


def test_parameters_start_as_those_of_dense_layers(key):
    params = jax.jit(MLP((300,), 10).init)(key, np.zeros((1, 400)))["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "kernel_0": (400, 300),
        "bias_0": (300,),
        "kernel_1": (300, 10),
        "bias_1": (10,),
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert not np.asarray(params["bias_0"]).any()
    # 120,000 draws of variance 1 / 400: their own deviation from it is 0.4 %, doubled by the cut at two sigmas at most
    np.testing.assert_allclose(np.asarray(params["kernel_0"]).std(), 400**-0.5, rtol=0.01)


def test_derivatives_up_to_second_order():
    with jax.enable_x64(True):
        draw = np.random.default_rng(0).standard_normal
        layers = [(draw((3, 4)), draw(4)), (draw((4, 2)), draw(2))]
        x = draw((5, 3))

        def run(layers, x):
            return mlp(jax.tree.map(jnp.asarray, layers), jnp.asarray(x), jnp.tanh)  # check_grads calls it with NumPy's

        check_grads(run, (layers, x), order=2, modes=["fwd", "rev"])


def test_each_row_is_by_itself(key):
    x = jnp.asarray(normal(4, 5))
    network = MLP((7,), 6)
    outputs, variables = jax.jit(network.init_with_output)(key, x)
    jacobian = jax.jit(jax.jacobian(partial(network.apply, variables)))(x)
    others = ~np.eye(4, dtype=bool)
    assert not np.asarray(jacobian).transpose(0, 2, 1, 3)[others].any()
    each = jax.jit(jax.vmap(partial(network.apply, variables)))(x)
    np.testing.assert_allclose(each, outputs, rtol=1e-5, atol=1e-5)


def test_bfloat16_inputs_meet_float32_parameters(key):
    x = jnp.asarray(normal(2, 5))
    network = MLP((7,), 6)
    outputs, variables = network.init_with_output(key, x.astype(jnp.bfloat16))
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, network.apply(variables, x), atol=0.05)  # inputs of 8 bits


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "layers: empty"),
        ([(4, 3)], r"layers\[0\]: kernel \[4, 3\], bias \[3\] after 5 features"),
        ([(5, 3), (4, 2)], r"layers\[1\]: kernel \[4, 2\], bias \[2\] after 3 features"),
    ],
)
def test_sizes_that_do_not_follow_each_other(shapes, message):
    layers = [(jnp.ones(shape), jnp.ones(shape[1])) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        mlp(layers, jnp.ones((2, 5)))
