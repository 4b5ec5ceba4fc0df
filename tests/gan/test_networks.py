"""Shapes, dtypes and starting points of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.gan.networks import (
    ArticleDiscriminator,
    ArticleGenerator,
    AttentionBlock,
    Discriminator,
    Generator,
    ResidualBlock,
    Restorer,
    Translator,
)
from jaxai.gan.penalties import r1
from jaxai.gan.transformer_networks import TransformerDiscriminator, TransformerGenerator
from jaxai.nn.transformer import TransformerConfig

BLOCKS = TransformerConfig(embed_dim=8, num_layers=1, num_heads=2, hidden_dim=8, position="learned")
GENERATORS = [
    ArticleGenerator(hidden=(8,), channels=(4, 4)),
    Generator((8, 4), 16, 1),
    Generator((8,), 16, 0, (8, 8, 3)),
    Generator((8, 4), 16, attention=True),
    TransformerGenerator(BLOCKS, (12, 8, 3), hidden=8, channels=2),
]
DISCRIMINATORS = [
    ArticleDiscriminator(channels=(4, 4), hidden=8),
    Discriminator((8, 4), 16, 1),
    Discriminator((8,), 16),
    Discriminator((8, 4), 16, attention=True),
    TransformerDiscriminator(BLOCKS, patch=7, hidden=8),
]


@pytest.mark.parametrize("network", GENERATORS, ids=lambda network: type(network).__name__)
@pytest.mark.grid(fast=1)
def test_generators_make_images(network, key):
    latents = jax.random.normal(key, (3, 5))
    images, _ = network.init_with_output(key, latents)
    shape = getattr(network, "image_shape", (28, 28, 1))
    assert images.shape == (3, *shape)
    assert images.dtype == jnp.float32
    assert np.ptp(images, axis=0).max() > 0  # they depend on the latents


@pytest.mark.parametrize("network", DISCRIMINATORS, ids=lambda network: type(network).__name__)
@pytest.mark.grid(fast=1)
def test_discriminators_make_one_logit_an_image_each_by_itself(network, key):
    images = jax.random.normal(key, (3, 28, 28, 1))
    logits, variables = network.init_with_output(key, images)
    assert logits.shape == (3,)
    alone = [network.apply(variables, image[None])[0] for image in images]
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)  # float32 products in blocks of another size


@pytest.mark.parametrize(
    "network", [GENERATORS[1], DISCRIMINATORS[1], GENERATORS[-1], DISCRIMINATORS[-1]], ids=lambda x: type(x).__name__
)
@pytest.mark.grid(fast=1)
def test_bfloat16_activations_keep_float32_parameters_and_results(network, key):
    network = network.clone(dtype=jnp.bfloat16)
    x = jax.random.normal(key, (2, 5) if "Generator" in type(network).__name__ else (2, 28, 28, 1))
    output, variables = network.init_with_output(key, x)
    assert output.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    wanted = network.clone(dtype=None).apply(variables, x)
    np.testing.assert_allclose(output, wanted, rtol=0.1, atol=0.1)  # 8 bits of mantissa through five layers


def test_residual_block_starts_as_the_identity(key):
    x = jax.random.normal(key, (2, 4, 4, 6))
    output, _ = ResidualBlock().init_with_output(key, x)
    np.testing.assert_array_equal(output, x)


def test_attention_block_starts_as_the_identity_and_looks_everywhere(key):
    x = jax.random.normal(key, (2, 4, 4, 6))
    output, variables = AttentionBlock().init_with_output(key, x)
    np.testing.assert_array_equal(output, x)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    moved = AttentionBlock().apply(variables, x.at[0, 0, 0].add(1.0)) - AttentionBlock().apply(variables, x)
    assert (jnp.abs(moved[0]) > 0).any(-1).all()
    np.testing.assert_array_equal(moved[1], 0)


@pytest.mark.parametrize("network", [GENERATORS[1], GENERATORS[-1], DISCRIMINATORS[1], DISCRIMINATORS[-1]])
@pytest.mark.grid(fast=1)
def test_labels_tell_what_is_asked_for(network, key):
    network = network.clone(classes=3)
    x = jax.random.normal(key, (2, 5) if "Generator" in type(network).__name__ else (2, 28, 28, 1))
    variables = network.init(key, x, jnp.zeros(2, jnp.int32))
    one, other = (network.apply(variables, x, jnp.array(labels)) for labels in ([0, 1], [0, 2]))
    np.testing.assert_array_equal(one[0], other[0])
    assert (one[1] != other[1]).any()
    with pytest.raises(ValueError, match="classes=3"):
        network.apply(variables, x)
    with pytest.raises(ValueError, match="classes=0"):
        network.clone(classes=0).apply(variables, x, jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize("network", DISCRIMINATORS[-2:], ids=["attention", "transformer"])
@pytest.mark.slow
def test_penalties_differentiate_through_attention(network, key):
    """The gradient of R1, a second derivative, against central differences in float64."""
    with jax.enable_x64(True):
        images = jax.random.normal(key, (2, 28, 28, 1), "float64")
        params = jax.tree.map(lambda x: x.astype("float64"), network.init(key, images)["params"])
        keys = iter(jax.random.split(key, 100))
        params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape, x.dtype), params)
        direction = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape, x.dtype), params)

        @jax.jit
        def value(step):
            moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
            return r1(lambda x: network.apply({"params": moved}, x), images, images, key).mean()

        wanted = (value(1e-5) - value(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(value))(0.0), wanted, rtol=1e-6)


@pytest.mark.parametrize("hinted", [False, True])
def test_restorer_starts_as_the_identity_for_images_of_any_size(key, hinted):
    images, hints = jax.random.normal(key, (2, 8, 8, 3)), jnp.ones((2, 8, 8, 1)) if hinted else None
    network = Restorer(width=4, blocks=1)
    output, variables = network.init_with_output(key, images, hints)
    np.testing.assert_array_equal(output, images)
    variables = jax.tree.map(lambda x: x + 0.1, variables)
    large = jax.random.normal(key, (1, 12, 16, 3))
    assert network.apply(variables, large, None if hints is None else jnp.ones((1, 12, 16, 1))).shape == large.shape
    changed = network.apply(variables, images, None if hints is None else 0 * hints)
    assert (changed != network.apply(variables, images, hints)).any() == hinted


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (1, 1)])
@pytest.mark.grid(fast=1)
def test_channels_are_those_of_where_it_leads_for_images_of_any_size(key, before, after):
    network, images = Translator(after, width=4, blocks=1), jax.random.uniform(key, (2, 8, 12, before), minval=-1)
    output, variables = network.init_with_output(key, images)
    np.testing.assert_array_equal(output, np.zeros((2, 8, 12, after)))
    variables = jax.tree.map(lambda x: x + 0.1, variables)
    changed = network.apply(variables, images)
    assert (changed != 0).any()
    assert np.abs(changed).max() <= 1
    assert network.apply(variables, images[:, :4, :4]).shape == (2, 4, 4, after)


def test_the_translators_fold_must_divide_the_image(key):
    with pytest.raises(ValueError, match="fold=2 does not divide images of 5x4"):
        Translator(1).init(key, jnp.zeros((1, 5, 4, 1)))
