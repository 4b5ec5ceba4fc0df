"""Shapes, classes and sizes of the image data sets, and the checks that every source shares."""

import dataclasses
import difflib

import numpy as np
from jaxtyping import Int32, UInt8

from jaxai.errors import UserError

Arrays = tuple[UInt8[np.ndarray, "n height width C"], Int32[np.ndarray, " n"]]
"""Images, 0 ... 255, and their labels."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A data set's fixed properties: ``shape`` of an image (height, width, C), classes, official image counts."""

    name: str
    shape: tuple[int, int, int]
    counts: dict[str, int]
    num_classes: int = 10


SPECS = {
    "mnist": Spec("mnist", (28, 28, 1), {"train": 60_000, "test": 10_000}),
    "fashion_mnist": Spec("fashion_mnist", (28, 28, 1), {"train": 60_000, "test": 10_000}),
    "cifar10": Spec("cifar10", (32, 32, 3), {"train": 50_000, "test": 10_000}),
    "digits8x8": Spec("digits8x8", (8, 8, 1), {"train": 1_500, "test": 297}),
}


def spec_of(name: str, *, among: tuple[str, ...] = tuple(SPECS)) -> Spec:
    """The properties of a data set; ``ValueError`` for a name not in ``among``, suggesting the closest one."""
    if name in among:
        return SPECS[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), among, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(f"name {name!r} is unknown here{hint}; choose one of: {', '.join(among)}")


def check_arrays(images: np.ndarray, labels: np.ndarray, spec: Spec, where: str) -> Arrays:
    """Return the arrays as uint8 [n, height, width, C] and int32 [n]; ``ValueError``, starting with ``where``, if
    their shapes, dtypes or labels do not match ``spec``.
    """
    if images.dtype != np.uint8 or images.shape[1:] != spec.shape:
        raise UserError(
            f"{where}: images are {images.dtype} {list(images.shape[1:])}, but {spec.name} has uint8"
            f" {list(spec.shape)}; check that these are {spec.name}'s files"
        )
    if len(images) != len(labels) or len(images) == 0:
        raise UserError(
            f"{where}: {len(images):,} images and {len(labels):,} labels; they must be equally many and at least"
            " one: take both files from the same download"
        )
    labels = labels.astype(np.int32)
    if labels.min() < 0 or labels.max() >= spec.num_classes:
        bad = int(np.flatnonzero((labels < 0) | (labels >= spec.num_classes))[0])
        raise UserError(
            f"{where}: label {labels[bad]} of example {bad} is outside 0..{spec.num_classes - 1}; the file is"
            " damaged or not a label file: fetch it again"
        )
    return images, labels
