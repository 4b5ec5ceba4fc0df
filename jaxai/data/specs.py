"""What each data set looks like, and the checks that every source shares."""

import dataclasses
import difflib
import math

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8, UInt64

SPLITS = ("train", "test")

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
    """The properties of a data set; ``ValueError`` offers the nearest of ``among`` for an unknown name."""
    if name in among:
        return SPECS[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), among, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"name {name!r} is unknown here{hint}; choose one of: {', '.join(among)}")


def check_split(split: str) -> None:
    """Raise ``ValueError`` unless ``split`` is ``train`` or ``test``."""
    if split not in SPLITS:
        near = difflib.get_close_matches(split.lower(), SPLITS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"split {split!r} is unknown{hint}; choose one of: {', '.join(SPLITS)}")


def check_arrays(images: np.ndarray, labels: np.ndarray, spec: Spec, where: str) -> Arrays:
    """The arrays as uint8 [n, height, width, C] and int32 [n], or ``ValueError`` that begins with ``where``."""
    if images.dtype != np.uint8 or images.shape[1:] != spec.shape:
        raise ValueError(
            f"{where}: images are {images.dtype} {list(images.shape[1:])}, but {spec.name} has uint8"
            f" {list(spec.shape)}; check that these are {spec.name}'s files"
        )
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"{where}: {len(images):,} images and {len(labels):,} labels; they must be equally many and at least"
            " one: take both files from the same download"
        )
    labels = labels.astype(np.int32)
    if labels.min() < 0 or labels.max() >= spec.num_classes:
        bad = int(np.flatnonzero((labels < 0) | (labels >= spec.num_classes))[0])
        raise ValueError(
            f"{where}: label {labels[bad]} of example {bad} is outside 0..{spec.num_classes - 1}; the file is"
            " damaged or not a label file: fetch it again"
        )
    return images, labels


def stream(shape: tuple[int, ...], *entropy: int) -> UInt64[np.ndarray, "..."]:
    """Random 64-bit numbers that depend on ``entropy`` (integers >= 0) alone.

    A bit generator's raw output, because numpy promises that, but no method of ``Generator``, to stay the same in later
    versions: a resumed run and the shipped split must not change with numpy.
    """
    return np.random.Philox(np.random.SeedSequence(entropy)).random_raw(math.prod(shape)).reshape(shape)


def permutation(n: int, *entropy: int) -> Int64[np.ndarray, " n"]:
    """A random order of 0 ... n - 1 that depends on ``entropy`` (integers >= 0) alone, see `stream`."""
    return np.argsort(stream((n,), *entropy), kind="stable")


def uniform(shape: tuple[int, ...], *entropy: int) -> Float64[np.ndarray, "..."]:
    """Multiples of 2^-53 in [0, 1) that depend on ``entropy`` (integers >= 0) alone, see `stream`."""
    return (stream(shape, *entropy) >> np.uint64(11)) * 2.0**-53


def integers(n: int, shape: tuple[int, ...], *entropy: int) -> Int64[np.ndarray, "..."]:
    """0 ... n - 1 that depend on ``entropy`` (integers >= 0) alone, see `stream`: its remainders by n, as good as
    equally likely where n is far below 2^64.
    """
    return (stream(shape, *entropy) % np.uint64(n)).astype(np.int64)
