"""Parameters and outputs of `jaxai.nn.layers` are those of `flax.linen`, both ways."""

import inspect
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn import layers
from jaxai.nn.layers import Conv, ConvTranspose, Dense
from tests.ops.oracle import compiled

LAYERS = {"Conv": (Conv, nn.Conv), "ConvTranspose": (ConvTranspose, nn.ConvTranspose)}
OPTIONS = {
    "Conv": [
        {},
        {"strides": (2, 2), "padding": "VALID", "use_bias": False},
        {"strides": 2, "padding": ((1, 2), (0, 1)), "kernel_dilation": 2},
        {"kernel_dilation": (1, 2), "feature_group_count": 2, "kernel_init": nn.initializers.he_normal()},
        {"feature_group_count": 4, "features": 8, "strides": (2, 1), "kernel_size": (3, 2)},
        {"dtype": jnp.bfloat16, "feature_group_count": 4},
        {"param_dtype": jnp.bfloat16},
    ],
    "ConvTranspose": [
        {"strides": (2, 2), "kernel_init": nn.initializers.he_normal()},
        {"strides": 2, "padding": ((1, 2), (0, 1)), "use_bias": False},
        {"strides": (2, 3), "padding": "VALID", "dtype": jnp.bfloat16},
        {"param_dtype": jnp.bfloat16},
    ],
}


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in LAYERS for options in OPTIONS[name]])
def test_parameters_are_interchangeable(name, options, key):
    ours, flax = (
        layer(**{"features": 4, "kernel_size": (4, 3), "bias_init": nn.initializers.normal(), **options})
        for layer in LAYERS[name]
    )

    @compiled
    def exchange(x):
        variables, theirs = ours.init(key, x), flax.init(key, x)
        return variables, theirs, ours.apply(theirs, x), flax.apply(variables, x)

    variables, theirs, y, desired = exchange(jax.random.normal(key, (2, 7, 8, 4)))
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), variables, theirs)  # dtypes as well
    assert y.dtype == desired.dtype
    # bfloat16 keeps 8 bits; float32 sums 48 terms in another order
    tolerance = 0.05 if y.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(np.asarray(y, np.float32), np.asarray(desired, np.float32), atol=tolerance)


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"dtype": jnp.bfloat16}])
def test_dense_parameters_are_interchangeable(options, key):
    x = jax.random.normal(key, (2, 3, 5))
    ours, flax = (layer(4, **options) for layer in (Dense, nn.Dense))
    variables, theirs = (compiled(layer.init)(key, x) for layer in (ours, flax))
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), variables, theirs)
    y, desired = (compiled(layer.apply)(variables, x) for layer in (ours, flax))
    assert y.dtype == desired.dtype
    np.testing.assert_allclose(np.asarray(y, np.float32), np.asarray(desired, np.float32), atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_fields_are_flax_s(name):
    ours, flax = (layer.__dataclass_fields__ for layer in LAYERS[name])
    assert set(ours) - set(flax) == {"implementation"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Conv", {"feature_group_count": 3}, r"feature_group_count=3 must divide the 4 channels of x \(1, 5, 5, 4\)"),
        ("Conv", {"feature_group_count": 8}, "feature_group_count=8"),
        ("Conv", {"feature_group_count": 0}, "feature_group_count=0"),
        ("Conv", {"feature_group_count": 4, "features": 6}, "feature_group_count=4, which must divide"),
        ("Conv", {"padding": "CIRCULAR"}, "padding='CIRCULAR'"),
        ("ConvTranspose", {"implementation": "fast"}, "implementation='fast'"),
    ],
)
def test_bad_input(name, options, message, key):
    layer = LAYERS[name][0](**{"features": 4, "kernel_size": (3, 3), "kernel_init": nn.initializers.ones, **options})
    with pytest.raises(ValueError, match=message):
        layer.init(key, jnp.ones((1, 5, 5, 4)))


def test_one_number_is_no_kernel_size():
    plain = inspect.unwrap(layers._parameters)  # without the tests' own type checker, as users meet it
    with pytest.raises(ValueError, match="kernel_size=3: give height and width"):
        plain(SimpleNamespace(kernel_size=3), jnp.ones((1, 5, 5, 4)), 1)
