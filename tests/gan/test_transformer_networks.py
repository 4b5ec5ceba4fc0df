"""Networks of Transformer blocks: patches, positions, symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxai.gan.transformer_networks import (
    TransformerDiscriminator,
    TransformerGenerator,
    add_position_embedding,
    patches,
)
from jaxai.nn.transformer import TransformerConfig
from tests.helpers import normal

BLOCKS = TransformerConfig(embed_dim=8, num_layers=1, num_heads=2, hidden_dim=8, position="learned")


@pytest.mark.parametrize("patch", [0, 5])
def test_patches_must_divide_the_image(patch, key):
    with pytest.raises(ValueError, match=f"patch={patch} does not divide images of 28x28"):
        jax.jit(TransformerDiscriminator(BLOCKS, patch).init)(key, np.zeros((1, 28, 28, 1)))


@pytest.mark.parametrize(
    ("shape", "patch", "expected"), [((28, 28, 1), 4, (7, 7)), ((12, 8, 3), 4, (3, 2)), ((5, 7), 1, (5, 7))]
)
def test_rows_and_columns_of_patches(shape, patch, expected):
    assert patches(shape, patch) == expected


@pytest.mark.parametrize(("shape", "patch"), [((28, 28, 1), 5), ((12, 8, 3), 3), ((4, 4, 1), 0), ((4, 4, 1), -2)])
def test_patches_that_do_not_fit(shape, patch):
    with pytest.raises(ValueError, match=f"patch={patch} does not divide images of {shape[0]}x{shape[1]}: give a"):
        patches(shape, patch)


def test_every_place_has_an_embedding_of_its_own(key):
    class Embedding(nn.Module):
        @nn.compact
        def __call__(self, x):
            return add_position_embedding(self, x)

    x = normal(3, 6, 4)
    output, variables = jax.jit(Embedding().init_with_output)(key, x)
    positions = np.asarray(variables["params"]["positions"])
    assert positions.shape == (1, 6, 4)
    np.testing.assert_array_equal(output, x + positions)
    assert len(np.unique(positions[0], axis=0)) == 6
    assert jax.jit(Embedding().apply)(variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_discriminator_sees_where_a_patch_is(key):
    """And without positions it would not: with them at zero a mirrored image of whole patches has the same logit."""
    network = TransformerDiscriminator(BLOCKS, patch=4, hidden=8)
    tiles = normal(2, 2, 1, 4, 1, 1) * np.ones((2, 2, 4, 4, 4, 1))
    images = tiles.transpose(0, 1, 2, 3, 4, 5).reshape(2, 8, 16, 1)
    variables, apply = jax.jit(network.init)(key, images), jax.jit(network.apply)
    moved = np.roll(images, 4, axis=2)
    assert np.abs(np.asarray(apply(variables, images)) - apply(variables, moved)).min() > 1e-5


def test_generated_images_lie_between_minus_one_and_one(key):
    network = TransformerGenerator(BLOCKS, (12, 8, 3), hidden=8, channels=2)
    images, _ = jax.jit(network.init_with_output)(key, 100 * normal(3, 5))
    assert images.shape == (3, 12, 8, 3)
    assert np.abs(images).max() <= 1


def test_the_patch_of_the_generator_must_divide_its_images(key):
    with pytest.raises(ValueError, match="patch=5 does not divide images of 12x8"):
        jax.jit(TransformerGenerator(BLOCKS, (12, 8, 3), patch=5).init)(key, np.zeros((1, 5)))


@pytest.mark.slow
def test_images_of_a_batch_do_not_see_each_other(key):
    network = TransformerGenerator(BLOCKS, (8, 8, 1), hidden=8, channels=2)
    latents = normal(4, 5)
    images, variables = jax.jit(network.init_with_output)(key, latents)
    apply = jax.jit(network.apply)
    alone = np.concatenate([apply(variables, row[None]) for row in latents])
    np.testing.assert_allclose(images, alone, atol=1e-5)  # float32 products in blocks of another size
