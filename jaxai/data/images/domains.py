"""Domains of digits (inverted, coloured, small), and batches of two domains for unpaired image translation."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int, UInt8
from PIL import Image

from jaxai.data.images.sources import ImageDataset, load
from jaxai.data.pipeline import Gathered, check_rows, endless, own_rows
from jaxai.data.random import Stream, integers

Grey = UInt8[np.ndarray, "n height width 1"]
Colour = UInt8[np.ndarray, "n height width 3"]
Domain = Literal["inverted", "coloured", "small"]

SIDE, INNER = 28, 20
INK = np.array([0, 30, 130.0])
PAPER = np.array([[255, 235, 130], [255, 165, 190.0]])  # the top row of pixels, the bottom row


def inverted(images: Grey) -> Grey:
    """Invert the grey values; its own inverse."""
    return 255 - images


def coloured(images: Grey) -> Colour:
    """Map white to blue ink, and black to paper that fades from yellow at the top to pink at the bottom."""
    paper, height = papers(images.shape[1]), images.shape[1]
    colours = np.rint(paper + (INK - paper) * (np.arange(256)[None, :, None] / 255)).astype(np.uint8)
    return colours[np.arange(height)[:, None], images[..., 0]]


def uncoloured(images: Colour) -> Grey:
    """Invert `coloured`: exact for its images; other colours are projected onto the line from paper to ink."""
    paper = papers(images.shape[1])
    way = INK - paper
    share = ((images - paper) * way).sum(-1, keepdims=True) / (way**2).sum(-1, keepdims=True)
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


def papers(height: int) -> Float64[np.ndarray, "{height} 1 3"]:
    """The paper's colour in each row of pixels."""
    down = np.linspace(0, 1, height)[:, None, None]
    return PAPER[0] + (PAPER[1] - PAPER[0]) * down


def upscaled(images: Grey) -> UInt8[np.ndarray, "n 28 28 1"]:
    """Resize images to 20x20 (bicubic) and centre them in 28x28, as in MNIST."""
    size = (INNER, INNER)
    large = [np.asarray(Image.fromarray(x[..., 0]).resize(size, Image.Resampling.BICUBIC)) for x in images]
    edge = (SIDE - INNER) // 2
    return np.pad(np.stack(large), ((0, 0), (edge, edge), (edge, edge)))[..., None]


def unchanged(images: Grey) -> Grey:
    """Return the images unchanged: `upscaled` has no inverse."""
    return images


DRAWN: dict[Domain, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": inverted,
    "coloured": coloured,
    "small": upscaled,
}
"""From white digits on black to the domain, uint8 to uint8; ``small`` is for the 8x8 digits."""

TO_GREY: dict[Domain, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": inverted,
    "coloured": uncoloured,
    "small": unchanged,
}
"""From the domain to white digits on black, uint8 to uint8 [n, 28, 28, 1]."""


class Domains(NamedTuple):
    """Images uint8 [n, height, width, C] of domains A and B, and their digits [n], used only for scoring."""

    a: UInt8[np.ndarray, "n height width C"]
    a_digits: Int[np.ndarray, " n"]
    b: UInt8[np.ndarray, "m height width D"]
    b_digits: Int[np.ndarray, " m"]


def two_domains(mnist: ImageDataset, domain: Domain) -> tuple[Domains, ImageDataset]:
    """Split an MNIST split into two domains; also return the data set that B comes from.

    A is every other digit. B is ``domain`` applied to the remaining digits, or to the 8x8 digits for ``small``.
    """
    a, a_digits = mnist.images[::2], mnist.labels[::2]
    if domain == "small":
        others = load("digits8x8", mnist.split)
        return Domains(a, a_digits, DRAWN[domain](others.images), others.labels), others
    return Domains(a, a_digits, DRAWN[domain](mnist.images[1::2]), mnist.labels[1::2]), mnist


def unpaired_batches(
    a: UInt8[np.ndarray, "n height width C"],
    b: UInt8[np.ndarray, "m rows columns D"],
    batch_size: int,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Gathered:
    """An endless iterator of ``a`` uint8 [B, height, width, C] and ``b`` uint8 [B, rows, columns, D].

    Images are drawn independently, with replacement. State and processes are handled as in
    ``jaxai.data.pipeline.batches``, with the same errors.
    """
    check_rows(batch_size, process_index, process_count, seed)
    mine = own_rows(batch_size, process_index, process_count)

    def rows(index: int) -> dict[str, np.ndarray]:
        numbers = {
            "a": integers(len(a), (batch_size,), seed, Stream.DOMAIN_A, index),
            "b": integers(len(b), (batch_size,), seed, Stream.DOMAIN_B, index),
        }
        return {name: rows[mine].astype(np.int32) for name, rows in numbers.items()}

    def gather(arrays: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
        return {name: arrays[name][rows[name]] for name in arrays}

    return Gathered({"a": a, "b": b}, endless(rows), gather)
