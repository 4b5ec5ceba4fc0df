"""Sample grids, animations and training curves as files; each appears whole or not at all."""

import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from jaxai.typing import Array

GAP = 255  # grey level between the images of a grid


def grid(images: np.ndarray | Array, columns: int) -> np.ndarray:
    """Images [n, h, w, C] side by side, row by row, with gaps of one pixel.

    The result is uint8 [rows (h + 1) - 1, columns (w + 1) - 1, C]. C is 1 or 3; uint8 images are taken as they are,
    floats as [-1, 1] and clipped. Places after the last image stay white. ValueError for other shapes or dtypes, NaN,
    and ``columns`` < 1.
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


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1], clipped and rounded, as uint8 [n, height, width, C]; uint8 as it is. ValueError for others."""
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
    """Write a uint8 image [h, w, C] (or [h, w]) as PNG, every pixel ``scale`` pixels wide and high."""
    buffer = io.BytesIO()
    _image(array, scale).save(buffer, "PNG")
    _write(path, buffer.getvalue())


def save_gif(
    path: str | os.PathLike[str], frames: Sequence[np.ndarray], *, milliseconds: int = 100, scale: int = 2
) -> None:
    """Write uint8 images [h, w, C] of one shape as an endless animation, ``milliseconds`` for each frame."""
    if len({np.shape(frame) for frame in frames}) != 1:
        raise ValueError(f"frames: {len(frames)} of them, give at least one, all of the same shape")
    first, *others = (_image(frame, scale) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    _write(path, buffer.getvalue())


def _image(array: np.ndarray, scale: int) -> Image.Image:
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(f"array: {array.dtype}{list(array.shape)}, give uint8 [h, w], [h, w, 1] or [h, w, 3]")
    if scale < 1:
        raise ValueError(f"scale={scale}: must be at least 1")
    large = array.repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(large[..., 0] if large.shape[2:] == (1,) else large)


def plot_curves(path: str | os.PathLike[str], metrics: str | os.PathLike[str], groups: Sequence[Sequence[str]]) -> None:
    """Draw named values of a ``metrics.jsonl`` over the step as PNG, one panel for each group of names.

    Each line of the file is a JSON object with ``step`` and any of the names. Lines that are cut off are passed over,
    as are values that are not finite numbers; a name that never occurs is left out, and so is a panel without values.
    FileNotFoundError where the file is missing, ValueError where it holds none of the names.
    """
    records = _read_records(Path(metrics))
    panels = [[(name, *_series(records, name)) for name in group] for group in groups]
    panels = [[series for series in panel if series[1]] for panel in panels]
    panels = [panel for panel in panels if panel]
    if not panels:
        names = ", ".join(name for group in groups for name in group)
        raise ValueError(f"{metrics}: no values of {names or 'any name'}, give names that the file holds")
    figure = Figure(figsize=(7, 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        for name, steps, values in panel:
            ax.plot(steps, values, label=name.replace("_", " "), linewidth=1, marker="." if len(steps) < 30 else None)
        sizes = np.abs(np.concatenate([values for _, _, values in panel]))
        if sizes.max() > 10 * np.median(sizes):
            ax.set_yscale("symlog", linthresh=1)  # the first steps may be a hundred times the rest
        ax.legend(fontsize="small")
        ax.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    save_figure(path, figure)


def save_attention_maps(
    path: str | os.PathLike[str],
    weights: Float[Array | np.ndarray, "layers N T S"],
    queries: Sequence[str],
    keys: Sequence[str],
) -> None:
    """A PNG with what each token looks at: layers down, heads across; in a map a row is a query and sums to 1.

    ``queries`` [T] and ``keys`` [S] are the tokens' names. For short texts: each map is written out. ValueError for
    other shapes and NaN.
    """
    weights = np.asarray(weights, np.float64)
    layers, heads, *sizes = weights.shape
    if sizes != [len(queries), len(keys)] or not np.isfinite(weights).all():
        raise ValueError(f"weights: {weights.shape} for {len(queries)} queries, {len(keys)} keys, all must be finite")
    side = [max(1.6, 0.16 * size) for size in sizes]
    figure = Figure(figsize=(heads * side[1] + 0.6, layers * side[0] + 0.6), layout="constrained")
    for layer, row in enumerate(np.asarray(figure.subplots(layers, heads, squeeze=False))):
        for head, ax in enumerate(row):
            ax.imshow(weights[layer, head], cmap="Blues", vmin=0, vmax=1, aspect="auto")
            ax.set_title(f"layer {layer}, head {head}", fontsize=7)
            ax.set_xticks(
                range(len(keys)), keys if layer == layers - 1 else [], rotation=90, fontsize=6, parse_math=False
            )
            ax.set_yticks(range(len(queries)), queries if head == 0 else [], fontsize=6, parse_math=False)
            ax.tick_params(length=0)
    save_figure(path, figure)


def save_reading(
    path: str | os.PathLike[str], weights: Float[Array | np.ndarray, "layers N S"], sentences: Sequence[str]
) -> None:
    """A PNG with how much each head of each layer looks at each sentence [S] of a story: sentences down, heads across.

    A column sums to 1. ValueError for other shapes and NaN.
    """
    weights = np.asarray(weights, np.float64)
    layers, heads, count = weights.shape
    if count != len(sentences) or not np.isfinite(weights).all():
        raise ValueError(f"weights: {weights.shape} for {len(sentences)} sentences, all must be finite")
    figure = Figure(figsize=(4 + 0.12 * layers * (heads + 1), 0.8 + 0.24 * count), layout="constrained")
    for layer, ax in enumerate(np.asarray(figure.subplots(1, layers, squeeze=False))[0]):
        ax.imshow(weights[layer].T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        ax.set_title(f"layer {layer}", fontsize=7)
        ax.set_xticks([])
        ax.set_yticks(range(count), sentences if layer == 0 else [], fontsize=7, parse_math=False)
        ax.tick_params(length=0)
    save_figure(path, figure)


def save_attention_statistics(
    path: str | os.PathLike[str],
    entropy: Float[Array | np.ndarray, "layers T N"],
    mass: Float[Array | np.ndarray, "layers S _"],
) -> None:
    """A PNG for texts too long for maps: each head's entropy of its weights, in nats, and where they lie.

    Above, the entropy averaged over the queries: 0 where a head looks at one token. Below, the weights of all queries
    summed for each key: how much a position is looked at. ValueError for other shapes and NaN.
    """
    entropy, mass = np.asarray(entropy, np.float64), np.asarray(mass, np.float64)
    if entropy.ndim != 3 or mass.shape[::2] != entropy.shape[::2] or not np.isfinite([entropy.sum(), mass.sum()]).all():
        raise ValueError(f"entropy {entropy.shape}, mass {mass.shape}: give finite [layers, T, N] and [layers, S, N]")
    layers, _, heads = entropy.shape
    figure = Figure(figsize=(8, 2.4 + 1.2 * layers), layout="constrained")
    first, *others = np.asarray(figure.subplots(layers + 1, height_ratios=[2.0] + [1.0] * layers))
    for layer in range(layers):
        first.bar(np.arange(heads) + layer * (heads + 1), entropy[layer].mean(0), label=f"layer {layer}")
        others[layer].semilogy(np.maximum(mass[layer], 1e-6), linewidth=0.8)
        others[layer].set_ylabel(f"layer {layer}", fontsize="small")
    first.set_xticks([])
    first.set_ylabel("entropy of each head, nats", fontsize="small")
    first.legend(fontsize="small", ncols=min(layers, 6))
    others[0].set_title("weight that each position gets, by head", fontsize="small")
    others[-1].set_xlabel("position")
    save_figure(path, figure)


def save_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a matplotlib figure as PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    _write(path, buffer.getvalue())


def _read_records(path: Path) -> list[dict]:
    records = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed while it wrote
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def _series(records: list[dict], name: str) -> tuple[list[int | float], list[int | float]]:
    pairs = [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
    pairs = [(step, value) for step, value in pairs if np.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write beside the target, then rename: a reader never sees half a picture, a full disk leaves the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
