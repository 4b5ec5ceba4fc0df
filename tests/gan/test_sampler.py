"""Samples from a state: always the same latents, the averaged parameters, classes in turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxai.gan.sampler import Sampler, sampling_params
from jaxai.gan.state import GanState
from jaxai.train.keys import Keys


class Generator(nn.Module):
    """Scales its latents; with labels adds ten times these."""

    @nn.compact
    def __call__(self, latents, labels=None):
        scaled = self.param("scale", nn.initializers.ones, (1, 1)) * latents
        return scaled if labels is None else scaled + 10.0 * labels[:, None]


def state(scale: float, ema: float | None = None) -> GanState:
    params = [None if value is None else {"scale": jnp.full((1, 1), value)} for value in (scale, ema)]
    return GanState(jnp.int32(0), params[0], {}, params[1], (), (), jax.random.key(0))


def sampler(seed: int = 0, classes: int = 0) -> Sampler:
    return Sampler(Generator(), 3, Keys(seed), classes)


def test_the_average_draws_where_there_is_one():
    assert float(sampling_params(state(2.0))["scale"][0, 0]) == 2
    assert float(sampling_params(state(2.0, 5.0))["scale"][0, 0]) == 5
    np.testing.assert_allclose(sampler()(state(2.0, 6.0), 4), 3 * sampler()(state(2.0), 4), rtol=1e-6)


def test_latents_are_the_same_for_a_purpose_and_a_seed():
    latents = sampler().latents(200, purpose=1)
    assert (latents.shape, latents.dtype) == ((200, 3), np.float32)
    np.testing.assert_array_equal(latents, sampler().latents(200, purpose=1))
    assert not np.isin(latents, sampler().latents(200, purpose=2)).any()
    assert not np.isin(latents, sampler(seed=1).latents(200, purpose=1)).any()
    assert abs(latents.mean()) < 0.2  # 600 standard normal numbers: five standard errors
    assert latents.std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250])
def test_any_number_of_examples(count):
    samples = sampler()(state(1.0), count)
    assert (samples.shape, samples.dtype) == ((count, 3), np.float32)
    first = min(count, 100)
    np.testing.assert_array_equal(
        sampler()(state(1.0), first), samples[:first] if count <= 100 else sampler()(state(1.0), 100)
    )


def test_samples_follow_the_state_alone():
    draw = sampler()
    np.testing.assert_array_equal(draw(state(3.0), 7), draw(state(3.0), 7))
    np.testing.assert_allclose(draw(state(3.0), 7), 3 * draw(state(1.0), 7), rtol=1e-6)
    assert (draw(state(1.0), 7) != draw(state(1.0), 7, purpose=5)).all()


def test_classes_come_in_turn():
    draw, latents = sampler(classes=4), np.zeros((10, 3), np.float32)
    np.testing.assert_array_equal(draw.from_latents(state(1.0), latents)[:, 0], 10 * (np.arange(10) % 4))
    plain = sampler()(state(1.0), 120)
    np.testing.assert_allclose(draw(state(1.0), 120) - plain, 10 * (np.arange(120) % 4)[:, None] + 0 * plain, atol=1e-4)


def test_labels_may_be_given_and_are_ignored_without_classes():
    latents, labels = np.zeros((3, 3), np.float32), np.array([2, 5, 0])
    np.testing.assert_array_equal(sampler(classes=4).from_latents(state(1.0), latents, labels)[:, 0], [20, 10, 0])
    np.testing.assert_array_equal(sampler().from_latents(state(1.0), latents, labels), latents)
