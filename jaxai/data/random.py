"""Random numbers for data sets and their order: pure functions of integers, the same in every version of NumPy."""

import enum
import math

import numpy as np
from jaxtyping import Float64, Int64, UInt64


class Stream(enum.IntEnum):
    """Tags that separate the random streams of one seed, so that no two uses draw the same numbers."""

    FIXED_STACKS = 0
    STACKS = 1
    CROPS = 2
    SYMMETRIES = 3
    DOMAIN_A = 4
    DOMAIN_B = 5


def stream(shape: tuple[int, ...], *entropy: int) -> UInt64[np.ndarray, "..."]:
    """Random 64-bit numbers that depend on ``entropy`` (integers >= 0) alone.

    This is a bit generator's raw output: NumPy guarantees that it stays the same in later versions, unlike the methods
    of ``Generator``. A resumed run and the shipped splits must not change with NumPy's version.
    """
    return np.random.Philox(np.random.SeedSequence(entropy)).random_raw(math.prod(shape)).reshape(shape)


def permutation(n: int, *entropy: int) -> Int64[np.ndarray, " n"]:
    """A random permutation of 0 ... n - 1 that depends on ``entropy`` (integers >= 0) alone, see `stream`."""
    return np.argsort(stream((n,), *entropy), kind="stable")


def uniform(shape: tuple[int, ...], *entropy: int) -> Float64[np.ndarray, "..."]:
    """Uniform multiples of 2^-53 in [0, 1) that depend on ``entropy`` (integers >= 0) alone, see `stream`."""
    return (stream(shape, *entropy) >> np.uint64(11)) * 2.0**-53


def integers(n: int, shape: tuple[int, ...], *entropy: int) -> Int64[np.ndarray, "..."]:
    """Random integers in 0 ... n - 1 that depend on ``entropy`` (integers >= 0) alone, see `stream`.

    They are the stream modulo n: practically uniform for n far below 2^64.
    """
    return (stream(shape, *entropy) % np.uint64(n)).astype(np.int64)
