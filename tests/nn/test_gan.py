"""Shapes, dtypes and starting points of generators and discriminators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn.gan import ArticleDiscriminator, ArticleGenerator, Discriminator, Generator, ResidualBlock

GENERATORS = [
    ArticleGenerator(hidden=(8,), channels=(4, 4)),
    Generator((8, 4), 16, 1),
    Generator((8,), 16, 0, (8, 8, 3)),
]
DISCRIMINATORS = [
    ArticleDiscriminator(channels=(4, 4), hidden=8),
    Discriminator((8, 4), 16, 1),
    Discriminator((8,), 16),
]


@pytest.mark.parametrize("network", GENERATORS, ids=lambda network: type(network).__name__)
def test_generators_make_images(network, key):
    latents = jax.random.normal(key, (3, 5))
    images, _ = network.init_with_output(key, latents)
    shape = getattr(network, "image_shape", (28, 28, 1))
    assert images.shape == (3, *shape)
    assert images.dtype == jnp.float32
    assert np.ptp(images, axis=0).max() > 0  # they depend on the latents


@pytest.mark.parametrize("network", DISCRIMINATORS, ids=lambda network: type(network).__name__)
def test_discriminators_make_one_logit_an_image_each_by_itself(network, key):
    images = jax.random.normal(key, (3, 28, 28, 1))
    logits, variables = network.init_with_output(key, images)
    assert logits.shape == (3,)
    alone = [network.apply(variables, image[None])[0] for image in images]
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)  # float32 products in blocks of another size


@pytest.mark.parametrize("network", [GENERATORS[1], DISCRIMINATORS[1]], ids=["generator", "discriminator"])
def test_bfloat16_activations_keep_float32_parameters_and_results(network, key):
    network = network.clone(dtype=jnp.bfloat16)
    x = jax.random.normal(key, (2, 5) if isinstance(network, Generator) else (2, 28, 28, 1))
    output, variables = network.init_with_output(key, x)
    assert output.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    wanted = network.clone(dtype=None).apply(variables, x)
    np.testing.assert_allclose(output, wanted, rtol=0.1, atol=0.1)  # 8 bits of mantissa through five layers


def test_residual_block_starts_as_the_identity(key):
    x = jax.random.normal(key, (2, 4, 4, 6))
    output, _ = ResidualBlock().init_with_output(key, x)
    np.testing.assert_array_equal(output, x)
