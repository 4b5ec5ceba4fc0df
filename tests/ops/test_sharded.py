"""Every op with its batch split over four devices: the numbers of one device, and no device sees another's images."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxai.ops.conv import conv, conv_transpose
from jaxai.ops.pool import avg_pool, blur_downsample, blur_upsample, max_pool
from tests.ops.oracle import assert_close, compiled, draw

KERNEL = (3, 3, 4, 6)
OPS = {  # name: (op of images and kernel, the kernel's shape)
    "conv": (conv, KERNEL),
    "conv, strided": (lambda x, w: conv(x, w, strides=2), KERNEL),
    "conv, groups": (lambda x, w: conv(x, w, feature_group_count=2), (3, 3, 2, 6)),
    "conv, depthwise": (lambda x, w: conv(x, w, feature_group_count=4), (3, 3, 1, 8)),
    "conv_transpose": (lambda x, w: conv_transpose(x, w, strides=2), KERNEL),
    "max_pool": (lambda x, w: max_pool(w.sum() * x, 3, strides=2, padding="SAME"), (1,)),
    "avg_pool": (lambda x, w: avg_pool(w.sum() * x, 3, strides=2, padding="SAME"), (1,)),
    "blur_downsample": (lambda x, w: blur_downsample(w.sum() * x), (1,)),
    "blur_upsample": (lambda x, w: blur_upsample(w.sum() * x), (1,)),
}


@pytest.mark.parametrize("name", OPS)
def test_a_sharded_batch_gives_the_same(name):
    op, kernel = OPS[name]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x, w = draw((8, 6, 6, 4), kernel)

    def everything(x, w):
        # The value, and both gradients: that of w is summed over devices.
        return op(x, w), jax.grad(lambda x, w: jnp.sum(jnp.sin(op(x, w))), (0, 1))(x, w)

    program = compiled(everything).lower(jax.device_put(x, split), jax.device_put(w, whole)).compile()
    y, (dx, dw) = program(jax.device_put(x, split), jax.device_put(w, whole))
    assert_close((y, (dx, dw)), compiled(everything)(x, w), 1e-5)
    assert y.sharding.is_equivalent_to(split, 4)
    assert dx.sharding.is_equivalent_to(split, 4)
    assert "all-gather" not in program.as_text()
    assert "all-to-all" not in program.as_text()
