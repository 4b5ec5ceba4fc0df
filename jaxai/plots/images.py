"""Grids of images, PNG files and animations."""

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from jaxai.typing import Array

GAP = 255  # grey level between the images of a grid


def grid(images: np.ndarray | Array, columns: int) -> np.ndarray:
    """Arrange images [n, h, w, C] in a grid, row by row, with gaps of one pixel.

    The result is uint8 [rows (h + 1) - 1, columns (w + 1) - 1, C]. C is 1 or 3; images are uint8, or floats in [-1, 1],
    which are clipped. Cells after the last image stay white. ValueError for other shapes or dtypes, NaN, no images, and
    ``columns`` < 1.
    """
    pixels = to_pixels(np.asarray(images))
    if columns < 1 or not len(pixels):
        raise ValueError(f"columns={columns}, {len(pixels)} images: give at least one of each")
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + 1, width + 1, channels), GAP, np.uint8)
    cells[:count, :height, :width] = pixels
    cells = cells.reshape(rows, columns, height + 1, width + 1, channels)
    canvas = cells.transpose(0, 2, 1, 3, 4).reshape(rows * (height + 1), columns * (width + 1), channels)
    return canvas[:-1, :-1]


def stack(*images: np.ndarray) -> np.ndarray:
    """Concatenate images [n, h, w, C]; if some have 3 channels, grey images are repeated to 3."""
    channels = max(x.shape[-1] for x in images)
    return np.concatenate([np.broadcast_to(x, (*x.shape[:-1], channels)) for x in images])


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Convert images [n, height, width, C] in [-1, 1] to uint8, clipped and rounded; uint8 passes unchanged.

    C is 1 or 3. ValueError for other shapes or dtypes, and NaN.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images: shape {list(images.shape)}, give [n, height, width, 1 or 3]")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating) and images.dtype.name != "bfloat16":
        raise ValueError(f"images: {images.dtype}, give uint8 or floats in [-1, 1]")
    images = images.astype(np.float32)
    if np.isnan(images).any():
        raise ValueError("images: NaN among the pixels, check the losses before drawing")
    return np.rint((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def save_png(path: str | os.PathLike[str], array: np.ndarray, *, scale: int = 2) -> None:
    """Write a uint8 image [h, w, C] (or [h, w]) as PNG, enlarged ``scale`` times."""
    buffer = io.BytesIO()
    _image(array, scale).save(buffer, "PNG")
    _write(path, buffer.getvalue())


def save_gif(
    path: str | os.PathLike[str], frames: Sequence[np.ndarray], *, milliseconds: int = 100, scale: int = 2
) -> None:
    """Write uint8 images [h, w, C] of equal shape as a looping GIF, ``milliseconds`` per frame."""
    if len({np.shape(frame) for frame in frames}) != 1:
        raise ValueError(f"frames: {len(frames)} of them, give at least one, all of the same shape")
    first, *others = (_image(frame, scale) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    _write(path, buffer.getvalue())


def animate_files(
    path: str | os.PathLike[str], files: Sequence[str | os.PathLike[str]], *, milliseconds: int = 100
) -> None:
    """Write a looping GIF of image files of equal size."""
    frames = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    save_gif(path, frames, milliseconds=milliseconds, scale=1)


def _image(array: np.ndarray, scale: int) -> Image.Image:
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(f"array: {array.dtype}{list(array.shape)}, give uint8 [h, w], [h, w, 1] or [h, w, 3]")
    if scale < 1:
        raise ValueError(f"scale={scale}: must be at least 1")
    large = array.repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(large[..., 0] if large.shape[2:] == (1,) else large)


def save_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a matplotlib figure as PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    _write(path, buffer.getvalue())


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write to a temporary file in the same folder, then rename it: the old file survives any failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)  # mkstemp gives 0o600
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
