"""The network that restores, and how it folds pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.gan.networks import Restorer, Translator
from jaxai.ops.resampling import depth_to_space, space_to_depth


def test_folding_moves_squares_into_channels_and_back(key):
    images = jax.random.normal(key, (2, 4, 6, 3))
    maps = space_to_depth(images, 2)
    assert maps.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(maps[1, 1, 2], images[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(depth_to_space(maps, 2), images)


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


def test_fold_must_divide_the_image():
    with pytest.raises(ValueError, match="fold=2 does not divide images of 5x4"):
        space_to_depth(jnp.zeros((1, 5, 4, 1)), 2)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (1, 1)])
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
