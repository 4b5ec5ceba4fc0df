"""Augmentation against slow NumPy loops with the same draws, and what holds for any draw."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxai.data.images.augmentation import alternating_flip, cutout, random_flip, random_translate

SHAPE = (5, 6, 7, 3)
DTYPES = ["uint8", "float32", "bfloat16"]
SIZES = [1, 2, 3, 6]
IDS = np.array([3, 14, 1, 59_999, 0])
KEEPING = {  # what takes and gives images alone
    "random_flip": random_flip,
    "alternating_flip": lambda key, images: alternating_flip(key, images, np.arange(len(images)), 1),
    "random_translate": lambda key, images: random_translate(key, images, 2),
    "cutout": lambda key, images: cutout(key, images, 3),
}


def images(dtype="float32", shape=SHAPE):
    values = np.random.default_rng(0).integers(0, 256, shape)
    return jnp.asarray(values if dtype == "uint8" else values / 127.5 - 1, dtype)


def same(actual, expected):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(np.asarray(actual, np.float32), np.asarray(expected, np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_flip_mirrors_the_drawn_images(key, dtype):
    x, flips = images(dtype), jax.random.bernoulli(key, shape=(5,))
    expected = np.stack([image[:, ::-1] if flip else image for image, flip in zip(np.asarray(x), flips, strict=True)])
    same(random_flip(key, x), expected)
    same(random_flip(key, random_flip(key, x)), x)


def test_half_of_the_images_are_flipped(key):
    ramp = jnp.broadcast_to(jnp.arange(2.0).reshape(1, 1, 2, 1), (4000, 1, 2, 1))
    for flipped in (random_flip(key, ramp), alternating_flip(key, ramp, np.arange(4000), 0)):
        share = flipped[:, 0, 0, 0].mean()
        assert abs(share - 0.5) < 0.04  # five standard deviations of 4,000 draws


@pytest.mark.parametrize("dtype", DTYPES)
def test_alternating_flip_follows_the_example(key, dtype):
    x = images(dtype)
    bits = [bool(jax.random.bernoulli(jax.random.fold_in(key, int(i)))) for i in IDS]
    for epoch in range(3):
        flips = [bit != bool(epoch % 2) for bit in bits]
        expected = [image[:, ::-1] if flip else image for image, flip in zip(np.asarray(x), flips, strict=True)]
        same(alternating_flip(key, x, IDS, epoch), np.stack(expected))
    order = np.array([2, 0, 4, 1, 3])  # an example's orientation is the same at any place of any batch
    same(alternating_flip(key, x[order], IDS[order], 0), alternating_flip(key, x, IDS, 0)[order])


def test_two_epochs_show_both_orientations(key):
    x, ids = images(shape=(40, 2, 3, 1)), np.arange(40)
    for epoch in (0, 7):
        shown = [np.asarray(alternating_flip(key, x, ids, epoch + i)) for i in range(2)]
        for image, first, second in zip(np.asarray(x), *shown, strict=True):
            pair = {first.tobytes(), second.tobytes()}
            assert pair == {image.tobytes(), image[:, ::-1].tobytes()}
    same(alternating_flip(key, x, ids, 4), alternating_flip(key, x, ids, 0))


def test_a_batch_may_span_two_epochs(key):
    x, epochs = images(), np.array([6, 6, 7, 7, 7])
    even, odd = (alternating_flip(key, x, IDS, epoch) for epoch in (0, 1))
    same(alternating_flip(key, x, IDS, epochs), jnp.concatenate([even[:2], odd[2:]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_translation_is_a_crop_of_the_reflected_image(key, dtype):
    x, corners = images(dtype), jax.random.randint(key, (5, 2), 0, 7)
    padded = np.pad(np.asarray(x), ((0, 0), (3, 3), (3, 3), (0, 0)), "reflect")
    expected = [image[i : i + 6, j : j + 7] for image, (i, j) in zip(padded, np.asarray(corners), strict=True)]
    same(random_translate(key, x, 3), np.stack(expected))
    same(random_translate(key, x, 0), x)


def test_translation_reaches_every_place(key):
    x = jnp.broadcast_to(jnp.arange(25.0).reshape(1, 5, 5, 1), (400, 5, 5, 1))
    centres = np.asarray(random_translate(key, x, 2)[:, 2, 2, 0])
    assert set(centres) == set(range(25))  # each of them is left out with probability 25 (24/25)^400 < 1e-5


@pytest.fixture(scope="module")
def squares():
    """Images with a square of every size, by dtype, as one program: each alone takes as long to compile."""
    every = jax.jit(lambda key, batches: {d: {n: cutout(key, x, n, 7) for n in SIZES} for d, x in batches.items()})
    return every(jax.random.key(0), {dtype: images(dtype) for dtype in DTYPES})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cutout_covers_a_square(key, squares, dtype, size):
    x = images(dtype)
    rows, columns = (
        np.asarray(jax.random.randint(k, (5, 1), 0, n))[:, 0]
        for k, n in zip(jax.random.split(key), (6, 7), strict=True)
    )
    expected = np.array(x)
    for image, row, column in zip(expected, rows, columns, strict=True):
        top, left = row - size // 2, column - size // 2
        image[max(top, 0) : top + size, max(left, 0) : left + size] = 7
    same(squares[dtype][size], expected)


def test_cutout_hangs_over_every_border(key):
    holes = np.asarray(cutout(key, jnp.ones((500, 5, 5, 1)), 3))[..., 0] == 0
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert (holes.sum((1, 2)) == heights * widths).all()
    assert {*zip(heights.tolist(), widths.tolist(), strict=True)} == {(h, w) for h in (2, 3) for w in (2, 3)}
    for corner in np.ix_([0, -1], [0, -1]), np.ix_([2], [2]):
        assert holes[:, *corner].any(0).all()


@pytest.mark.parametrize("name", KEEPING)
def test_the_key_decides_and_each_image_has_its_own_draw(key, name):
    f, one = KEEPING[name], images(shape=(1, 8, 8, 1))
    x = jnp.broadcast_to(one, (32, 8, 8, 1))
    y = f(key, x)
    same(f(key, x), y)
    same(jax.jit(f)(key, x), y)
    assert (f(jax.random.key(1), x) != y).any()
    assert len({image.tobytes() for image in np.asarray(y)}) > 1
    keys = jax.random.split(key, 3)
    same(jax.vmap(f, (0, None))(keys, x), np.stack([f(k, x) for k in keys]))


def test_numpy_batches_as_the_pipeline_gives_them(key):
    x = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    for f in KEEPING.values():
        same(f(key, x), f(key, jnp.asarray(x)))


X = jnp.zeros((5, 6, 7, 1))


@pytest.mark.parametrize(
    ("f", "args", "message"),
    [
        (random_flip, (X[0],), r"images: float32\[6, 7, 1\], give uint8 or floats"),
        (random_flip, (X.astype(int),), "images: int32"),
        (alternating_flip, (X[..., 0], IDS, 0), "images: float32"),
        (alternating_flip, (X, IDS[:4], 0), r"ids: int64\[4\], give one integer for each of 5"),
        (alternating_flip, (X, IDS / 2, 0), "ids: float64"),
        (alternating_flip, (X, IDS, 0.5), "epoch: float32"),
        (alternating_flip, (X, IDS, np.arange(4)), r"epoch: int32\[4\]"),
        (random_translate, (X, 6), "pixels=6 .* give 0 to 5"),
        (random_translate, (X, -1), "pixels=-1"),
        (random_translate, (X[0], 1), "images: float32"),
        (cutout, (X, 0), "size=0 .* give 1 to 6"),
        (cutout, (X, 7), "size=7"),
        (cutout, (X.astype("uint8"), 2, 256), "value=256 for uint8"),
        (cutout, (X.astype("uint8"), 2, 0.5), "value=0.5 for uint8"),
    ],
)
def test_bad_input(key, f, args, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(f)(key, *args)  # without the tests' own shape checker, as users call it
