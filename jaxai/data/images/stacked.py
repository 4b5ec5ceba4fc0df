"""Stacked MNIST: three digits as the colour channels of one image, 1,000 modes (Metz et al. 2017, arXiv 1611.02163)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, Int64, UInt8

from jaxai.data.pipeline import Gathered, check_rows, endless, own_rows
from jaxai.data.random import Stream, integers
from jaxai.errors import UserError
from jaxai.typing import Array


def stacked[A: (np.ndarray, Array)](images: A, rows: Int[Array | np.ndarray, "B 3"]) -> A:
    """Stack three images of [n, 28, 28, 1], indexed by each row, as channels: [B, 28, 28, 3]; NumPy or JAX arrays."""
    digits: Any = images[rows]  # [B, 3, 28, 28, 1]
    return digits[..., 0].transpose(0, 2, 3, 1)


def fixed_rows(count: int, n: int, seed: int) -> Int64[np.ndarray, "{count} 3"]:
    """Indices of the three images, of n, in each of ``count`` fixed stacks."""
    return integers(n, (count, 3), seed, Stream.FIXED_STACKS)


def stack_batches(
    images: UInt8[np.ndarray, "n 28 28 1"],
    batch_size: int,
    *,
    seed: int,
    fixed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Gathered:
    """An endless iterator of ``image`` uint8 [B, 28, 28, 3]: stacks of three images drawn at random.

    ``fixed`` limits the data set to that many different stacks, as in the literature (128,000); with 0 each stack is
    new. State and processes are handled as in ``jaxai.data.pipeline.batches``, with the same errors; also
    ``ValueError`` for a negative ``fixed``.
    """
    check_rows(batch_size, process_index, process_count, seed)
    if fixed < 0:
        raise UserError(f"fixed is {fixed}; choose how many stacks there are, or 0 for new ones")
    table = fixed_rows(fixed, len(images), seed) if fixed else None
    mine = own_rows(batch_size, process_index, process_count)

    def rows(index: int) -> dict[str, np.ndarray]:
        if table is None:
            digits = integers(len(images), (batch_size, 3), seed, Stream.STACKS, index)
        else:
            digits = table[integers(len(table), (batch_size,), seed, Stream.STACKS, index)]
        return {"digits": digits[mine].astype(np.int32)}

    def gather(arrays: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
        return {"image": stacked(arrays["image"], rows["digits"])}

    return Gathered({"image": images}, endless(rows), gather)
