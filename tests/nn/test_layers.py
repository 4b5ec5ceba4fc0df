"""Parameters and outputs of `jaxai.nn.layers` are those of `flax.linen`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn.layers import Conv, ConvTranspose

PAIRS = [
    (Conv, nn.Conv, {}),
    (Conv, nn.Conv, {"strides": (2, 2), "padding": "VALID", "use_bias": False}),
    (Conv, nn.Conv, {"kernel_dilation": 2, "feature_group_count": 3, "features": 6}),
    (ConvTranspose, nn.ConvTranspose, {"strides": (2, 2)}),
    (ConvTranspose, nn.ConvTranspose, {"strides": (2, 2), "padding": ((1, 2), (0, 1)), "use_bias": False}),
]


@pytest.mark.parametrize("dtypes", [{}, {"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}])
@pytest.mark.parametrize(("ours", "flax", "options"), PAIRS)
def test_parameters_are_interchangeable(ours, flax, options, dtypes, key):
    options = {"features": 5, "kernel_size": (4, 4), "bias_init": nn.initializers.normal(), **options, **dtypes}
    x = jax.random.normal(key, (2, 7, 8, 3))
    variables = ours(**options).init(key, x)
    jax.tree.map(np.testing.assert_array_equal, variables, flax(**options).init(key, x))
    y, desired = ours(**options).apply(variables, x), flax(**options).apply(variables, x)
    assert y.dtype == desired.dtype
    # bfloat16 keeps 8 bits; float32 sums 48 terms in another order
    tolerance = 0.05 if y.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(np.asarray(y, np.float32), np.asarray(desired, np.float32), atol=tolerance)
