"""Slow, plain oracles in NumPy: loops over the window, one einsum a line, in the dtype given."""

import numpy as np
from numpy import ndarray


def conv(
    x: ndarray,
    kernel: ndarray,
    strides: tuple[int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int] = (1, 1),
) -> ndarray:
    """Convolution of x [B, H, W, C] with kernel [kh, kw, C, F], zeros around x as `pads` says."""
    views = windows(x, kernel.shape[:2], strides, pads, dilation=dilation)
    return np.einsum("pqbhwc,pqcf->bhwf", views, kernel)


def conv_transpose(
    x: ndarray,
    kernel: ndarray,
    strides: tuple[int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
) -> ndarray:
    """Convolution with `strides - 1` zeros between the pixels of x, `pads` around them."""
    b, h, w, c = x.shape
    spread = np.zeros((b, (h - 1) * strides[0] + 1, (w - 1) * strides[1] + 1, c), x.dtype)
    spread[:, :: strides[0], :: strides[1]] = x
    return conv(spread, kernel, (1, 1), pads)


def max_pool(
    x: ndarray,
    window: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
) -> ndarray:
    """The largest value of each window."""
    return windows(x, window, strides, pads, fill=-np.inf).max((0, 1))


def avg_pool(
    x: ndarray,
    window: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
) -> ndarray:
    """The mean of each window, padding counted as zeros."""
    return windows(x, window, strides, pads).mean((0, 1))


def windows(
    x: ndarray,
    window: tuple[int, ...],
    strides: tuple[int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
    *,
    dilation: tuple[int, int] = (1, 1),
    fill: float = 0.0,
) -> ndarray:
    """What each output pixel sees: [kh, kw, B, H', W', C]."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    (kh, kw), (sh, sw), (dh, dw) = window, strides, dilation
    rows, columns = (x.shape[1] - (kh - 1) * dh - 1) // sh + 1, (x.shape[2] - (kw - 1) * dw - 1) // sw + 1
    return np.stack(
        [np.stack([x[:, p * dh :: sh, q * dw :: sw][:, :rows, :columns] for q in range(kw)]) for p in range(kh)]
    )
