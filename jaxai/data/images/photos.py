"""Photographs shipped with scikit-image, all in the public domain or CC0, and random crops of them.

Colour: astronaut (NASA), coffee (Rachel Michetti), rocket (SpaceX), chelsea (Stefan van der Walt). Grey: brick, grass,
gravel (cc0textures.com), camera (Lav Varshney).
"""

from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxai.data.pipeline import check_rows, endless, own_rows
from jaxai.data.random import Stream, integers
from jaxai.errors import UserError

PHOTOS = {"train": ("astronaut", "coffee", "rocket", "brick", "grass", "gravel"), "test": ("chelsea", "camera")}
"""Photograph names by split; no photograph is in both."""

Photo = UInt8[np.ndarray, "height width 3"]


def load_photos(split: str) -> dict[str, Photo]:
    """The photographs of a split by name, uint8 [height, width, 3]; grey ones have three equal channels."""
    from skimage import data as skimage  # slow to import, and only this function needs it

    found = {name: np.asarray(getattr(skimage, name)()) for name in PHOTOS[split]}
    return {name: x if x.ndim == 3 else np.repeat(x[..., None], 3, -1) for name, x in found.items()}


def with_halves(photos: dict[str, Photo], least: int) -> dict[str, Photo]:
    """Add a half-size copy (bicubic) of each photograph whose sides then have at least ``least`` pixels.

    The copies vary the scale of the objects.
    """
    halves = {}
    for name, photo in photos.items():
        height, width = (size // 2 for size in photo.shape[:2])
        if min(height, width) < least:
            continue
        image = Image.fromarray(photo[: 2 * height, : 2 * width])
        halves[f"{name} at half size"] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return photos | halves


def trimmed(photo: Photo, multiple: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """Crop a photograph at the right and the bottom so that ``multiple`` divides its height and width."""
    height, width = (size // multiple * multiple for size in photo.shape[:2])
    return photo[:height, :width]


def photo_details(
    photos: Sequence[UInt8[np.ndarray, "1 _ _ 3"]], side: int, count: int
) -> UInt8[np.ndarray, "{count} {side} {side} 3"]:
    """Cut ``count`` squares along the horizontal midline of the photographs, equally many from each.

    The photographs must be larger than ``side``.
    """
    squares = []
    for (photo,) in photos:
        top, lefts = (photo.shape[0] - side) // 2, np.linspace(0, photo.shape[1] - side, count // len(photos))
        squares += [photo[top : top + side, left : left + side] for left in lefts.astype(int)]
    return np.stack(squares)


def crop_batches(
    photos: dict[str, Photo],
    size: int,
    batch_size: int,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator of ``image`` uint8 [B, size, size, 3]: random crops, each in one of the eight symmetries of a
    square.

    All positions in all photographs are equally likely. State and processes are handled as in
    ``jaxai.data.pipeline.batches``, with the same errors; also ``ValueError`` for a photograph smaller than a crop.
    """
    check_rows(batch_size, process_index, process_count, seed)
    for name, photo in photos.items():
        if size < 1 or min(photo.shape[:2]) < size:
            raise UserError(f"size is {size}, but {name} is {photo.shape[0]}x{photo.shape[1]}; choose a smaller one")
    images = list(photos.values())
    places = np.array([(x.shape[0] - size + 1, x.shape[1] - size + 1) for x in images])
    ends, mine = np.cumsum(places.prod(1)), own_rows(batch_size, process_index, process_count)

    def batch(index: int) -> dict[str, np.ndarray]:
        numbers = integers(int(ends[-1]), (batch_size,), seed, Stream.CROPS, index)[mine]
        symmetries = integers(8, (batch_size,), seed, Stream.SYMMETRIES, index)[mine]
        crops = []
        for number, symmetry in zip(numbers, symmetries, strict=True):
            which = int(np.searchsorted(ends, number, side="right"))
            row, column = divmod(int(number - ends[which] + places[which].prod()), int(places[which][1]))
            crop = np.rot90(images[which][row : row + size, column : column + size], symmetry // 2)
            crops.append(crop[:, ::-1] if symmetry % 2 else crop)
        return {"image": np.stack(crops)}

    return endless(batch)
