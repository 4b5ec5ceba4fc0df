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
from tests.helpers import normal

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


def shifted(variables):
    """Not the initial values, among which are kernels of zeros."""
    return jax.tree.map(lambda x: np.asarray(x) + 0.1, variables)


@pytest.mark.parametrize("network", GENERATORS, ids=lambda network: type(network).__name__)
@pytest.mark.grid(fast=1)
def test_generators_make_images(network, key):
    images, _ = jax.jit(network.init_with_output)(key, normal(3, 5))
    shape = getattr(network, "image_shape", (28, 28, 1))
    assert images.shape == (3, *shape)
    assert images.dtype == jnp.float32
    assert np.ptp(images, axis=0).max() > 0  # they depend on the latents


@pytest.mark.parametrize("network", DISCRIMINATORS, ids=lambda network: type(network).__name__)
@pytest.mark.grid(fast=1)
def test_discriminators_make_one_logit_an_image_each_by_itself(network, key):
    images = normal(3, 28, 28, 1)
    logits, variables = jax.jit(network.init_with_output)(key, images)
    assert logits.shape == (3,)
    apply = jax.jit(network.apply)
    alone = np.concatenate([apply(variables, image[None]) for image in images])
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)  # float32 products in blocks of another size


@pytest.mark.parametrize(
    "network", [GENERATORS[1], DISCRIMINATORS[1], GENERATORS[-1], DISCRIMINATORS[-1]], ids=lambda x: type(x).__name__
)
@pytest.mark.grid(fast=1)
def test_bfloat16_activations_keep_float32_parameters_and_results(network, key):
    network = network.clone(dtype=jnp.bfloat16)
    x = normal(2, 5) if "Generator" in type(network).__name__ else normal(2, 28, 28, 1)
    output, variables = jax.jit(network.init_with_output)(key, x)
    assert output.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    wanted = jax.jit(network.clone(dtype=None).apply)(variables, x)
    np.testing.assert_allclose(output, wanted, rtol=0.1, atol=0.1)  # 8 bits of mantissa through five layers


def test_residual_block_starts_as_the_identity(key):
    x = normal(2, 4, 4, 6)
    output, _ = jax.jit(ResidualBlock().init_with_output)(key, x)
    np.testing.assert_array_equal(output, x)


def test_attention_block_starts_as_the_identity_and_looks_everywhere(key):
    x = normal(2, 4, 4, 6)
    output, variables = jax.jit(AttentionBlock().init_with_output)(key, x)
    np.testing.assert_array_equal(output, x)
    variables, apply = shifted(variables), jax.jit(AttentionBlock().apply)
    other = x.copy()
    other[0, 0, 0] += 1.0
    moved = np.asarray(apply(variables, other)) - apply(variables, x)
    assert (np.abs(moved[0]) > 0).any(-1).all()
    np.testing.assert_array_equal(moved[1], 0)


@pytest.mark.parametrize("network", [GENERATORS[1], GENERATORS[-1], DISCRIMINATORS[1], DISCRIMINATORS[-1]])
@pytest.mark.grid(fast=1)
def test_labels_tell_what_is_asked_for(network, key):
    network = network.clone(classes=3)
    x = normal(2, 5) if "Generator" in type(network).__name__ else normal(2, 28, 28, 1)
    variables, apply = jax.jit(network.init)(key, x, np.zeros(2, int)), jax.jit(network.apply)
    one, other = (np.asarray(apply(variables, x, np.array(labels))) for labels in ([0, 1], [0, 2]))
    np.testing.assert_array_equal(one[0], other[0])
    assert (one[1] != other[1]).any()
    with pytest.raises(ValueError, match="classes=3"):
        apply(variables, x)
    with pytest.raises(ValueError, match="classes=0"):
        jax.jit(network.clone(classes=0).apply)(variables, x, np.zeros(2, int))


@pytest.mark.parametrize("network", DISCRIMINATORS[-2:], ids=["attention", "transformer"])
@pytest.mark.slow
def test_penalties_differentiate_through_attention(network, key):
    """The gradient of R1, a second derivative, against central differences in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.normal(size=(2, 28, 28, 1)))
        params = jax.jit(network.init)(key, images)["params"]
        params = jax.tree.map(lambda x: np.float64(x) + 0.1 * rng.normal(size=x.shape), params)
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)

        @jax.jit
        def value(step):
            moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
            return r1(lambda x: network.apply({"params": moved}, x), images, images, key).mean()

        wanted = (value(1e-5) - value(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(value))(0.0), wanted, rtol=1e-6)


@pytest.mark.parametrize("hinted", [False, True])
def test_restorer_starts_as_the_identity_for_images_of_any_size(key, hinted):
    images, hints = normal(2, 8, 8, 3), np.ones((2, 8, 8, 1)) if hinted else None
    network = Restorer(width=4, blocks=1)
    output, variables = jax.jit(network.init_with_output)(key, images, hints)
    np.testing.assert_array_equal(output, images)
    variables, apply = shifted(variables), jax.jit(network.apply)
    large = normal(1, 12, 16, 3)
    marks = None if hints is None else np.ones((1, 12, 16, 1), np.float32)
    assert jax.eval_shape(apply, variables, large, marks).shape == large.shape
    changed = apply(variables, images, None if hints is None else 0 * hints)
    assert (np.asarray(changed) != apply(variables, images, hints)).any() == hinted


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (1, 1)])
@pytest.mark.grid(fast=1)
def test_channels_are_those_of_where_it_leads_for_images_of_any_size(key, before, after):
    network, images = Translator(after, width=4, blocks=1), np.tanh(normal(2, 8, 12, before))
    output, variables = jax.jit(network.init_with_output)(key, images)
    np.testing.assert_array_equal(output, np.zeros((2, 8, 12, after)))
    variables, apply = shifted(variables), jax.jit(network.apply)
    changed = np.asarray(apply(variables, images))
    assert (changed != 0).any()
    assert np.abs(changed).max() <= 1
    assert jax.eval_shape(apply, variables, images[:, :4, :4]).shape == (2, 4, 4, after)


def test_the_translators_fold_must_divide_the_image(key):
    with pytest.raises(ValueError, match="fold=2 does not divide images of 5x4"):
        jax.jit(Translator(1).init)(key, np.zeros((1, 5, 4, 1)))
