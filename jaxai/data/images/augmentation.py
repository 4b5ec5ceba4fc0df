"""Augmentation on the device: pure functions of a key and one batch, each image with draws of its own.

Images are uint8 or float [B, H, W, C], from JAX or NumPy, and keep their shape and dtype. Every function is compiled as
it is, and becomes part of a ``jit`` around it. Give each call a key of its own, split from ``fold_in(key, step)`` say.
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
    """Each image mirrored left to right with probability 1/2. ValueError for images that are not as above."""
    _check(images)
    return _flip(images, jax.random.bernoulli(key, shape=(len(images),)))


@jax.jit
def alternating_flip(
    key: Key[Array, ""], images: AnyImages, ids: Int[Array, " B"], epoch: Int[Array, "..."] | int
) -> AnyImages:
    """airbench's flip: a hash of the example decides about even epochs, every odd one is the opposite.

    Mirrored where bit(key, id) != epoch mod 2, the bit being 1 for half of the examples. So two epochs in a row show
    each example once in each orientation, where `random_flip` repeats one in half of the cases. ``key`` is one key for
    the whole run, not one a step; ``ids`` [B] are the examples' positions in the data set; ``epoch`` is a number, or
    [B] for a batch that spans two epochs.

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
    """Each image moved by -``pixels`` ... ``pixels`` in height and in width; what comes in is the image's reflection.

    A crop, at a uniform place, of ``np.pad(image, pixels, "reflect")``, which doesn't repeat the border, as in airbench
    (Jordan 2024, arXiv 2404.00498). ValueError for images that are not as above, and for pixels that are not in
    0 ... min(H, W) - 1.
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
    """Each image with a ``size`` x ``size`` square of ``value`` around a uniform pixel; it may hang over the border.

    Rows y - size // 2 ... y - size // 2 + size - 1 for the pixel (y, x), columns alike. ``value`` 0 is the mean of
    standardised images, and black in uint8.

    Source: DeVries and Taylor 2017, arXiv 1708.04552, who found the squares beyond the border to matter. ValueError for
    images that are not as above, a size that is not in 1 ... min(H, W), and a value that uint8 images can't hold.
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
    """Which of ``length`` pixels lie in the ``size`` around each centre [B, 1]: bool [B, length]."""
    offset = jnp.arange(length)[None] - (centre - size // 2)
    return (offset >= 0) & (offset < size)


def _check(images: Array) -> None:
    if images.ndim != 4 or (images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating)):
        raise UserError(f"images: {images.dtype}{list(images.shape)}, give uint8 or floats of shape [B, H, W, C]")
