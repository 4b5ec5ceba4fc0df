"""The network that makes images of one kind from images of another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.nn.translation import Translator


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


def test_fold_must_divide_the_image(key):
    with pytest.raises(ValueError, match="fold=2 does not divide images of 5x4"):
        Translator(1).init(key, jnp.zeros((1, 5, 4, 1)))
