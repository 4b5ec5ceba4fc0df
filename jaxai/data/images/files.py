"""Reading the user's image files."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from jaxai.errors import MissingFileError, UserError


def read_image(
    path: Path, channels: int, *, masked: bool = False
) -> tuple[UInt8[np.ndarray, "1 height width C"], Float32[np.ndarray, "1 height width 1"] | None]:
    """Read an image, grey (1 channel) or in colour (3), rotated upright; with ``masked`` also a mask, 1 if transparent.

    Raises FileNotFoundError, and ValueError if the file is not an image or, with ``masked``, has no transparent pixel.
    """
    if not path.is_file():
        raise MissingFileError(f"--image {path} is missing: give an image file")
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
            alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"--image {path} can't be read as an image ({error}): give a PNG or JPEG") from error
    if picture.mode.startswith(("I", "F")):
        raise UserError(f"--image {path} has more than 8 bits a channel: convert it first")
    pixels = pixels.reshape(1, *pixels.shape[:2], -1)
    if not masked:
        return pixels, None
    if alpha.all():
        raise UserError(f"--image {path} has no hole: make the missing part transparent")
    return pixels, (alpha == 0)[None, ..., None].astype(np.float32)
