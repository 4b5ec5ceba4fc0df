"""Domains of digits (inverted, coloured, small), and unpaired batches of two domains for unpaired translation."""

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
PAPER = np.array([[255, 235, 130], [255, 165, 190.0]])  # the first row of pixels, the last one


def inverted(images: Grey) -> Grey:
    """Black for white; its own inverse."""
    return 255 - images


def coloured(images: Grey) -> Colour:
    """Blue ink, where the image is white, on paper that goes from yellow at the top to pink at the bottom."""
    paper, height = papers(images.shape[1]), images.shape[1]
    colours = np.rint(paper + (INK - paper) * (np.arange(256)[None, :, None] / 255)).astype(np.uint8)
    return colours[np.arange(height)[:, None], images[..., 0]]


def uncoloured(images: Colour) -> Grey:
    """The grey values of `coloured`: exact for such images, for others those of the nearest points of its colours."""
    paper = papers(images.shape[1])
    way = INK - paper
    share = ((images - paper) * way).sum(-1, keepdims=True) / (way**2).sum(-1, keepdims=True)
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


def papers(height: int) -> Float64[np.ndarray, "{height} 1 3"]:
    """The paper's colour in each row of pixels."""
    down = np.linspace(0, 1, height)[:, None, None]
    return PAPER[0] + (PAPER[1] - PAPER[0]) * down


def upscaled(images: Grey) -> UInt8[np.ndarray, "n 28 28 1"]:
    """Images of any size at 20x20, by bicubic interpolation, in the middle of 28x28: where MNIST's digits are."""
    size = (INNER, INNER)
    large = [np.asarray(Image.fromarray(x[..., 0]).resize(size, Image.Resampling.BICUBIC)) for x in images]
    edge = (SIDE - INNER) // 2
    return np.pad(np.stack(large), ((0, 0), (edge, edge), (edge, edge)))[..., None]


def unchanged(images: Grey) -> Grey:
    """The images: `upscaled` has no inverse."""
    return images


DRAWN: dict[Domain, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": inverted,
    "coloured": coloured,
    "small": upscaled,
}
"""From white digits on black to the domain, uint8 to uint8; ``small`` is for the digits of 8x8 pixels."""

TO_GREY: dict[Domain, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": inverted,
    "coloured": uncoloured,
    "small": unchanged,
}
"""From the domain to white digits on black, uint8 to uint8 [n, 28, 28, 1]."""


class Domains(NamedTuple):
    """Images uint8 [n, height, width, C] of A and of B, and their digits [n], which only scores use."""

    a: UInt8[np.ndarray, "n height width C"]
    a_digits: Int[np.ndarray, " n"]
    b: UInt8[np.ndarray, "m height width D"]
    b_digits: Int[np.ndarray, " m"]


def two_domains(mnist: ImageDataset, domain: Domain) -> tuple[Domains, ImageDataset]:
    """A, every other digit of a split of MNIST, B, the others or the small digits in ``domain``, and B's data set."""
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

    Each image is drawn at random, by itself. State, restoring and the rows of several processes are those of
    ``jaxai.data.pipeline.batches``. Raises ``ValueError`` as that does.
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
