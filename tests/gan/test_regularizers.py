"""Remedies: what they do to examples and kernels, and that gradients pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxai.gan.regularizers import (
    instance_noise,
    minibatch_stddev,
    pack,
    spectral_norm,
    spectrally_normalised,
    unrolled,
)
from tests.helpers import normal


def test_instance_noise_has_its_deviation(key):
    noisy = jax.jit(instance_noise)
    noise = np.asarray(noisy(np.ones((100, 10, 10, 1)), key, 0.3)) - 1
    assert noise.std() == pytest.approx(0.3, rel=0.02)  # 10,000 draws
    np.testing.assert_array_equal(noisy(np.ones((2, 3)), key, 0.0), np.ones((2, 3)))


@pytest.mark.parametrize("shape", [(2,), (3, 4, 1), (3, 4, 3)])
def test_packing_stacks_channels(shape):
    x = jnp.asarray(normal(6, *shape))
    packed = np.asarray(jax.jit(pack, static_argnums=1)(x, 3))
    assert packed.shape == (2, *shape[:-1], 3 * shape[-1])
    for row in range(6):
        channels = slice(row % 3 * shape[-1], (row % 3 + 1) * shape[-1])
        np.testing.assert_array_equal(packed[row // 3, ..., channels], np.asarray(x)[row])
    with pytest.raises(ValueError, match="pack=4 for a batch of 6"):
        pack(x, 4)


@pytest.mark.parametrize("shape", [(5, 3), (3, 3, 4, 6)])
def test_spectral_norm_is_1(shape):
    kernel = jnp.asarray(normal(*shape))
    values = np.linalg.svd(np.asarray(spectral_norm(kernel, 50)).reshape(-1, shape[-1]), compute_uv=False)
    assert values[0] == pytest.approx(1.0, rel=1e-4)


def test_spectral_norm_of_a_large_kernel_is_near_1():
    values = np.linalg.svd(np.asarray(spectral_norm(jnp.asarray(normal(128, 128)))), compute_uv=False)
    assert 1 <= values[0] * (1 + 1e-5) < 1.08  # sigma comes out too small


@pytest.mark.parametrize("rows", [[[1.0, -1.0], [2.0, -2.0]], [[0.0, 0.0], [0.0, 3.0]]])
def test_spectral_norm_where_rows_or_columns_vanish(rows):
    values = np.linalg.svd(np.asarray(spectral_norm(jnp.array(rows))), compute_uv=False)
    assert values[0] == pytest.approx(1.0, rel=1e-5)


def test_a_kernel_of_zeros_stays_and_has_a_finite_gradient():
    zeros, weights = jnp.zeros((3, 3, 4, 5)), normal(3, 3, 4, 5)
    np.testing.assert_array_equal(spectral_norm(zeros), zeros)
    grad = jax.grad(lambda kernel: (weights * spectral_norm(kernel)).sum())(zeros)
    np.testing.assert_allclose(grad, weights)


def test_spectral_norm_does_not_change_with_the_kernels_scale():
    kernel = jnp.asarray(normal(5, 3))
    np.testing.assert_allclose(spectral_norm(7 * kernel, 30), spectral_norm(kernel, 30), rtol=1e-5)
    slope = jax.grad(lambda scale: (spectral_norm(scale * kernel, 30) ** 3).sum())(1.0)
    assert slope == pytest.approx(0.0, abs=1e-5)


def test_only_kernels_are_normalised():
    params = {"a": {"kernel": 5 * jnp.eye(3), "bias": jnp.full(3, 5.0)}, "b": {"kernel_0": 2 * jnp.eye(2)}}
    found = spectrally_normalised(params)
    np.testing.assert_allclose(found["a"]["kernel"], np.eye(3), rtol=1e-6)
    np.testing.assert_allclose(found["b"]["kernel_0"], np.eye(2), rtol=1e-6)
    np.testing.assert_array_equal(found["a"]["bias"], np.full(3, 5.0))


def test_unrolling_descends_and_is_differentiable():
    """A bowl around c: after n steps of rate r, x - c shrinks by (1 - r)^n, and c moves x by 1 - (1 - r)^n."""

    def end(c):
        return unrolled(jax.grad(lambda p: ((p["x"] - c) ** 2).sum() / 2), {"x": jnp.array([3.0])}, 4, 0.1)["x"][0]

    shrunk = 0.9**4
    value, slope = jax.jit(jax.value_and_grad(end))(1.0)
    assert value == pytest.approx(1 + 2 * shrunk, rel=1e-6)
    assert slope == pytest.approx(1 - shrunk, rel=1e-6)
    with jax.enable_x64(True):
        check_grads(end, (1.0,), order=2, modes=["rev"])


@pytest.mark.parametrize("space", [(), (2, 3)])
def test_deviation_of_every_group(space):
    x = normal(16, *space, 5)
    found = np.asarray(jax.jit(minibatch_stddev, static_argnums=1)(x, 4))
    np.testing.assert_array_equal(found[..., :-1], x)
    for row in range(16):
        group = x[row // 8 * 8 + row % 2 : row // 8 * 8 + 8 : 2]
        np.testing.assert_allclose(found[row, ..., -1], np.full(space, group.std(0).mean()), rtol=1e-5)


def test_real_examples_say_nothing_of_generated_ones():
    x, found = normal(8, 3), jax.jit(minibatch_stddev)
    other = x.copy()
    other[1::2] = 0.0
    np.testing.assert_array_equal(np.asarray(found(x))[::2], np.asarray(found(other))[::2])


def test_gradients_are_finite_where_all_are_equal():
    grad = jax.jit(jax.grad(lambda x: minibatch_stddev(x).sum()))(np.ones((8, 3)))
    np.testing.assert_array_equal(grad, np.ones((8, 3)))


def test_small_batches_are_one_group_and_odd_ones_an_error():
    assert jax.jit(minibatch_stddev, static_argnums=1)(np.ones((2, 3)), 4).shape == (2, 4)
    with pytest.raises(ValueError, match="the batch must be a multiple of 8"):
        minibatch_stddev(jnp.ones((12, 3)), 4)
    with pytest.raises(ValueError, match="group=0: give at least 1"):
        minibatch_stddev(jnp.ones((12, 3)), 0)
