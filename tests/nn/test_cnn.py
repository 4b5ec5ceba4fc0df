"""airbench's network: a slow oracle, Flax's batch normalisation, whitened patches, statistics for testing."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxai.nn.cnn import (
    AirbenchCNN,
    BatchNorm,
    partly_identity,
    population_statistics,
    standardise,
    whitening_kernel,
)
from tests.helpers import normal

TINY = AirbenchCNN((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), (5, 6, 7), classes=4)


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).uniform(size=(6, 26, 27, 3)), jnp.float32)


@pytest.fixture
def params(key, images):
    """Tiny parameters, with biases that are not zero."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.03, jax.jit(TINY.init)(key, images)["params"])


def convolve(x, kernel, padding):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normalise(x, bias):
    mean, variance = (f(x, axis=(0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
    return (x - mean) / jnp.sqrt(variance + 1e-12) + bias.reshape(1, 1, 1, -1)


def gelu(x):
    return x * 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def by_hand(params, images):
    """airbench94's forward pass in training."""
    mean, std = (np.asarray(values).reshape(1, 1, 1, 3) for values in (TINY.mean, TINY.std))
    x = convolve((images - mean) / std, params["whiten"]["kernel"], "VALID")
    x = gelu(x + params["whiten"]["bias"].reshape(1, 1, 1, 24))
    for name in ("group_0", "group_1", "group_2"):
        group = params[name]
        x = nn.max_pool(convolve(x, group["Conv_0"]["kernel"], "SAME"), (2, 2), (2, 2))
        x = gelu(normalise(x, group["BatchNorm_0"]["bias"]))
        x = gelu(normalise(convolve(x, group["Conv_1"]["kernel"], "SAME"), group["BatchNorm_1"]["bias"]))
    return x, x.max((1, 2)) @ params["linear"]["kernel"] / 7


@pytest.mark.slow
def test_training_pass_is_airbenchs(params, images):
    maps, logits = jax.jit(by_hand)(params, images)
    features, head = (jax.jit(partial(TINY.apply, method=name)) for name in ("features", "head"))
    # float32 through eight layers
    np.testing.assert_allclose(features({"params": params}, images), maps, atol=1e-4)
    np.testing.assert_allclose(jax.jit(TINY.apply)({"params": params}, images), logits, atol=1e-4)
    np.testing.assert_allclose(head({"params": params}, maps), logits, atol=1e-5)


def test_parameters_are_airbenchs(key):
    """As many as airbench94_muon's network has, drawn as PyTorch draws them."""
    network = AirbenchCNN((0.5,) * 3, (0.25,) * 3)
    shapes = jax.eval_shape(network.init, key, jnp.zeros((1, 32, 32, 3)))["params"]
    whitening, biases, head = 12 * 24 + 24, 2 * (64 + 256 + 256), 256 * 10
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == whitening + filters + biases + head == 1_971_640
    drawing = jax.jit(partly_identity, static_argnums=1)
    kernel = np.asarray(drawing(key, (3, 3, 24, 64)))
    copied, drawn = kernel[..., :24], kernel[..., 24:]
    x = normal(2, 5, 5, 24)
    np.testing.assert_array_equal(convolve(x, copied, "SAME"), x)
    bound = (9 * 24) ** -0.5
    assert 0.99 * bound < np.abs(drawn).max() <= bound
    np.testing.assert_allclose(drawn.std(), bound / 3**0.5, rtol=0.02)  # 8,640 draws
    np.testing.assert_array_equal(convolve(x, drawing(key, (3, 3, 24, 5)), "SAME"), x[..., :5])
    head = jax.jit(lambda *x: network.init(*x)["params"]["linear"]["kernel"])(key, np.zeros((1, 32, 32, 3)))
    np.testing.assert_allclose(np.asarray(head).std(), 1, rtol=0.05)  # 2,560 draws


@pytest.mark.slow
def test_the_whitening_kernel_gets_no_gradient(params, images):
    gradient = jax.jit(jax.grad(lambda params: (TINY.apply({"params": params}, images) ** 2).sum()))(params)
    frozen = gradient["whiten"].pop("kernel")
    assert not frozen.any()
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated(channels):
    noise = normal(40, 9, 8, channels)
    images = noise + 2 * np.roll(noise, 1, 1) + 0.5 * noise.sum(-1, keepdims=True)
    kernel = jax.jit(whitening_kernel)(images)
    assert kernel.shape == (2, 2, channels, 8 * channels)
    y = np.asarray(convolve(images, kernel, "VALID"), np.float64)
    half = 4 * channels
    np.testing.assert_array_equal(y[..., half:], -y[..., :half])
    y = y[..., :half].reshape(-1, half)
    # Each output's power is e / (e + 5e-4) for an eigenvalue e, here of at least 0.05; float32 eigenvectors
    np.testing.assert_allclose(y.T @ y / len(y), np.eye(half), atol=0.012)


def test_batch_norm_is_flaxs(key):
    x = 3 + 2 * normal(4, 5, 6, 7)
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.0, epsilon=1e-12, use_scale=False)
    variables = {"params": {"bias": np.arange(7.0)}}
    first = jax.jit(theirs.init)(key, x) | variables
    desired, statistics = jax.jit(partial(theirs.apply, mutable=["batch_stats"]))(first, x)
    ours = jax.jit(BatchNorm().apply)
    y, found = jax.jit(partial(BatchNorm().apply, mutable=["batch_stats"]))(variables, x)
    np.testing.assert_allclose(y, desired, atol=1e-5)
    np.testing.assert_array_equal(ours(variables, x), y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, statistics)
    one = ours(variables | statistics, x[:1])
    desired = jax.jit(theirs.clone(use_running_average=True).apply)(variables | statistics, x[:1])
    np.testing.assert_allclose(one, desired, atol=1e-5)


def test_population_statistics_of_one_layer_are_those_of_all_images(key):
    network = nn.Sequential([BatchNorm()])
    x = np.arange(1, 4).reshape(1, 1, 1, 3) * normal(12, 4, 4, 3) + np.arange(12).reshape(-1, 1, 1, 1)
    params = jax.jit(network.init)(key, x)["params"]
    batches = [jnp.asarray(x[first : first + 4], jnp.float32) for first in (0, 4, 8)]
    (found,) = population_statistics(network, params, batches).values()
    np.testing.assert_allclose(found["mean"], x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found["var"], x.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.slow
def test_with_the_statistics_of_a_batch_it_is_that_batchs_training_pass(params, images):
    statistics = population_statistics(TINY, params, [images])
    variables = {"params": params, "batch_stats": statistics}
    apply, images = jax.jit(TINY.apply), np.asarray(images)
    np.testing.assert_allclose(apply(variables, images), apply({"params": params}, images), atol=1e-5)
    alone = np.concatenate([apply(variables, images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_allclose(alone, apply(variables, images), atol=1e-5)


@pytest.mark.slow
def test_in_bfloat16_logits_are_float32_and_near(params, images):
    half = TINY.clone(dtype=jnp.bfloat16)
    features = jax.jit(partial(half.apply, method="features"))({"params": params}, images)
    logits = jax.jit(half.apply)({"params": params}, images)
    assert (features.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    # 8 bits through eight layers, on logits of about 0.5
    np.testing.assert_allclose(logits, jax.jit(TINY.apply)({"params": params}, images), atol=0.1)


def test_standardise(images):
    pixels = np.asarray(images)
    y = np.asarray(standardise(images, pixels.mean((0, 1, 2)).tolist(), pixels.std((0, 1, 2)).tolist()))
    np.testing.assert_allclose(y.mean((0, 1, 2)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), np.ones(3), rtol=1e-5)
