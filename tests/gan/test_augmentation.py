"""Augmentations for GANs: what each does to an image, that gradients pass, when their strength changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxai.gan.augmentation import POLICIES, adapted, augment


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(-1, 1, (16, 8, 12, 3)).astype(np.float32)


def augmented(images, key, *policies, strength=1.0, fill=0.0):
    """By one program."""
    return np.asarray(jax.jit(lambda images, key: augment(images, key, policies, strength, fill=fill))(images, key))


def test_brightness_adds_one_number_to_an_image(images, key):
    change = (augmented(images, key, "brightness") - images).reshape(16, -1)
    np.testing.assert_allclose(change, np.broadcast_to(change[:, :1], change.shape), atol=1e-6)
    assert np.abs(change).max() <= 0.5
    assert len(set(change[:, 0].round(5))) == 16


@pytest.mark.parametrize(("policy", "axes", "most"), [("saturation", (3,), 2.0), ("contrast", (1, 2, 3), 1.5)])
def test_saturation_and_contrast_stretch_around_a_mean(policy, axes, most, images, key):
    found = augmented(images, key, policy)
    mean = images.mean(axes, keepdims=True)
    np.testing.assert_allclose(found.mean(axes, keepdims=True), mean, atol=1e-5)
    before, after = ((x - mean).reshape(16, -1) for x in (images, found))
    factor = (before * after).sum(1) / (before**2).sum(1)
    np.testing.assert_allclose(after, factor[:, None] * before, atol=1e-6)  # float32 rounds numbers up to 3 to 2e-7
    assert ((factor >= 0) & (factor <= most)).all()


def test_translation_moves_and_fills(key):
    images = np.arange(1.0, 97.0).reshape(1, 8, 12, 1).repeat(64, 0)
    found = augmented(images, key, "translation", fill=-1.0)
    moves = set()
    for image in found:
        y, x = np.argwhere(image[2:-2, 2:-2, 0] > 0)[0] + 2
        row, column = divmod(int(image[y, x, 0]) - 1, 12)
        dy, dx = y - row, x - column
        moves.add((int(dy), int(dx)))
        padded = np.pad(images[0, :, :, 0], 2, constant_values=-1)
        np.testing.assert_allclose(image[:, :, 0], padded[2 - dy : 10 - dy, 2 - dx : 14 - dx], rtol=1e-6)
    assert {dy for dy, _ in moves} == {-1, 0, 1}
    assert {dx for _, dx in moves} == {-2, -1, 0, 1, 2}


def test_cutout_fills_a_rectangle(images, key):
    found = augmented(images, key, "cutout", fill=7.0)
    for image in found == 7:
        rows, columns = image[..., 0].any(1), image[..., 0].any(0)
        assert 2 <= rows.sum() <= 4
        assert 3 <= columns.sum() <= 6
        np.testing.assert_array_equal(image[..., 0], rows[:, None] & columns[None])


def test_strength_is_the_share_of_images_that_change(images, key):
    many = images.repeat(100, 0)
    changed = (augmented(many, key, "brightness", strength=0.3) != many).any((1, 2, 3))
    assert changed.mean() == pytest.approx(0.3, abs=0.04)  # 1,600 draws: 0.011 is a standard deviation
    np.testing.assert_array_equal(augmented(images, key, *POLICIES, strength=0.0), images)


@pytest.mark.slow
def test_gradients_pass_to_the_second_order(key):
    with jax.enable_x64(True):
        images = np.random.default_rng(0).uniform(size=(2, 4, 4, 3))
        check_grads(lambda x: (augment(jnp.asarray(x), key, POLICIES) ** 3).sum(), (images,), order=2, modes=["rev"])


def test_bad_policies(images, key):
    images = jnp.asarray(images)
    with pytest.raises(ValueError, match="saturation needs three channels"):
        augment(images[..., :1], key, ["saturation"])
    with pytest.raises(ValueError, match="policies has 'blur'"):
        augment(images, key, ["blur"])


def test_strength_rises_where_the_discriminator_is_sure():
    start = jnp.asarray(0.5)
    sure, unsure = jnp.ones(10), jnp.array([1.0, -1.0] * 5)
    assert adapted(start, sure, 10, images=100) == pytest.approx(0.6)
    assert adapted(start, unsure, 10, images=100) == pytest.approx(0.4)
    assert adapted(start, sure, 40, images=100) == pytest.approx(0.9)  # ten packs of four
    assert adapted(jnp.asarray(0.99), sure, 10, images=100) == 1.0
    assert adapted(jnp.asarray(0.01), unsure, 10, images=100) == 0.0
