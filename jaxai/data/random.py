"""Random numbers of data sets and their order: a pure function of integers, equal in every version of numpy."""

import enum
import math

import numpy as np
from jaxtyping import Float64, Int64, UInt64


class Stream(enum.IntEnum):
    """Tags that keep the streams of one seed apart: no two uses draw the same numbers."""

    FIXED_STACKS = 0
    STACKS = 1
    CROPS = 2
    SYMMETRIES = 3
    DOMAIN_A = 4
    DOMAIN_B = 5


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
