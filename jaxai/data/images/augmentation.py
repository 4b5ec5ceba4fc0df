"""Augmentation on the device: pure functions of a key and one batch, with independent draws for each image.

Images are uint8 or float [B, H, W, C], JAX or NumPy arrays, and keep their shape and dtype. Each function is jitted and
can be called inside another ``jit``. Give each call its own key, for example one split from ``fold_in(key, step)``.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import UInt8

from jaxai.errors import UserError
from jaxai.typing import Array, Images, Int, Key

AnyImages = UInt8[Array, "B height width C"] | Images


@jax.jit
def random_flip(key: Key[Array, ""], images: AnyImages) -> AnyImages:
    """Mirror each image left to right with probability 1/2. ValueError for images of another dtype or rank."""
    _check(images)
    return _flip(images, jax.random.bernoulli(key, shape=(len(images),)))


@jax.jit
def alternating_flip(
    key: Key[Array, ""], images: AnyImages, ids: Int[Array, " B"], epoch: Int[Array, "..."] | int
) -> AnyImages:
    """Alternating flip of airbench: a random bit per example, inverted in every odd epoch.

    An image is mirrored if bit(key, id) != epoch mod 2, where the bit is 1 for half of the examples. Two successive
    epochs thus show each example once in each orientation; `random_flip` repeats the orientation in half of the cases.
    Use one ``key`` for the whole run, not one per step. ``ids`` [B] are the examples' positions in the data set;
    ``epoch`` is a scalar, or [B] for a batch that spans two epochs.

    Source: Jordan 2024, arXiv 2404.00498, section 3.6 (there an MD5 hash). ValueError for images, ids or epochs of
    other shapes or dtypes.
    """
    _check(images)
    epoch = jnp.asarray(epoch)
    if ids.shape != images.shape[:1] or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(f"ids: {ids.dtype}{list(ids.shape)}, give one integer for each of {len(images)} images")
    if epoch.shape not in ((), ids.shape) or not jnp.issubdtype(epoch.dtype, jnp.integer):
        raise UserError(f"epoch: {epoch.dtype}{list(epoch.shape)}, give an integer, or one for each of {len(images)}")
    bits = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i)))(ids)
    return _flip(images, bits ^ (jnp.broadcast_to(epoch, ids.shape) % 2 == 1))


@partial(jax.jit, static_argnames="pixels")
def random_translate(key: Key[Array, ""], images: AnyImages, pixels: int) -> AnyImages:
    """Shift each image by -``pixels`` ... ``pixels`` in height and in width, with reflection padding.

    This is a uniformly placed crop of ``np.pad(image, pixels, "reflect")``, which doesn't repeat the border, as in
    airbench (Jordan 2024, arXiv 2404.00498). ValueError for images of another dtype or rank, and for ``pixels``
    outside 0 ... min(H, W) - 1.
    """
    _check(images)
    _, *shape = images.shape
    if not 0 <= pixels < min(shape[:2]):
        raise UserError(f"pixels={pixels} for images {images.shape}: give 0 to {min(shape[:2]) - 1}")
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), "reflect")
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(padded, corners)


@partial(jax.jit, static_argnames=("size", "value"))
def cutout(key: Key[Array, ""], images: AnyImages, size: int, value: float = 0) -> AnyImages:
    """Fill a ``size`` x ``size`` square around a uniformly drawn pixel of each image with ``value``.

    For the pixel (y, x) the square has rows y - size // 2 ... y - size // 2 + size - 1, and columns likewise; it may
    extend beyond the image. ``value`` 0 is the mean of standardised images, and black in uint8.

    Source: DeVries and Taylor 2017, arXiv 1708.04552, who found it important that squares may cross the border.
    ValueError for images of another dtype or rank, a size outside 1 ... min(H, W), and a value that uint8 can't hold.
    """
    _check(images)
    count, height, width, _ = images.shape
    if not 1 <= size <= min(height, width):
        raise UserError(f"size={size} for images {images.shape}: give 1 to {min(height, width)}")
    if images.dtype == jnp.uint8 and value not in range(256):
        raise UserError(f"value={value} for uint8 images: give an integer from 0 to 255")
    key_row, key_column = jax.random.split(key)
    rows = _band(jax.random.randint(key_row, (count, 1), 0, height), height, size)
    columns = _band(jax.random.randint(key_column, (count, 1), 0, width), width, size)
    return jnp.where((rows[:, :, None] & columns[:, None])[..., None], jnp.asarray(value, images.dtype), images)


def _flip(images: Array, flips: Array) -> Array:
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def _band(centre: Array, length: int, size: int) -> Array:
    """Mask of the ``size`` pixels, of ``length``, around each centre [B, 1]: bool [B, length]."""
    offset = jnp.arange(length)[None] - (centre - size // 2)
    return (offset >= 0) & (offset < size)


def _check(images: Array) -> None:
    if images.ndim != 4 or (images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating)):
        raise UserError(f"images: {images.dtype}{list(images.shape)}, give uint8 or floats of shape [B, H, W, C]")
