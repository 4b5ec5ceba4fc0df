"""Slow, plain oracles in NumPy: loops over the window, one einsum a line, in the dtype given."""

import numpy as np
from numpy import ndarray


def conv(
    x: ndarray,
    kernel: ndarray,
    strides: tuple[int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> ndarray:
    """Convolution of x [B, H, W, C] with kernel [kh, kw, C / groups, F], zeros around x as `pads` says."""
    parts = zip(np.split(x, groups, axis=3), np.split(kernel, groups, axis=3), strict=True)
    views = [(windows(part, kernel.shape[:2], strides, pads, dilation=dilation), k) for part, k in parts]
    return np.concatenate([np.einsum("pqbhwc,pqcf->bhwf", view, k) for view, k in views], axis=3)


def conv_transpose(
    x: ndarray,
    kernel: ndarray,
    strides: tuple[int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
) -> ndarray:
    """Convolution with `strides - 1` zeros between the pixels of x, `pads` around them."""
    return conv(spread(x, strides), kernel, (1, 1), pads)


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


def blur_downsample(x: ndarray, weights: tuple[float, ...]) -> ndarray:
    """The filter `weights` x `weights` at every second pixel."""
    pads = (len(weights) - 1) // 2, len(weights) // 2
    return np.einsum("pqbhwc,pq->bhwc", windows(x, (len(weights),) * 2, (2, 2), (pads, pads)), _outer(weights))


def blur_upsample(x: ndarray, weights: tuple[float, ...]) -> ndarray:
    """Zeros between the pixels, then 4 times the filter, flipped."""
    low = len(weights) // 2
    pads = low, len(weights) - low  # one zero more behind: the last pixel has one, too
    views = windows(spread(x, (2, 2)), (len(weights),) * 2, (1, 1), (pads, pads))
    return np.einsum("pqbhwc,pq->bhwc", views, 4 * _outer(weights)[::-1, ::-1])


def _outer(weights: tuple[float, ...]) -> ndarray:
    return np.outer(weights, weights) / np.sum(weights) ** 2


def spread(x: ndarray, strides: tuple[int, int]) -> ndarray:
    """`strides - 1` zeros between the pixels of x [B, H, W, C]."""
    b, h, w, c = x.shape
    y = np.zeros((b, (h - 1) * strides[0] + 1, (w - 1) * strides[1] + 1, c), x.dtype)
    y[:, :: strides[0], :: strides[1]] = x
    return y


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


def recurrent(
    cell: str,
    x: ndarray,
    states: tuple[ndarray, ...],
    kernel: ndarray,
    bias: ndarray,
    lengths: tuple[int, ...] | None = None,
    reverse: bool = False,
) -> tuple[ndarray, tuple[ndarray, ...]]:
    """Cell "rnn", "lstm" or "gru" over x [T, B, G], a row and a step at a time: outputs [T, B, H], last states."""
    outputs, states = np.zeros((*x.shape[:2], len(kernel)), x.dtype), tuple(state.copy() for state in states)
    for row in range(x.shape[1]):
        steps = range(len(x) if lengths is None else lengths[row])
        for step in reversed(steps) if reverse else steps:
            after = _step(cell, x[step, row], [state[row] for state in states], kernel, bias)
            for state, value in zip(states, after, strict=True):
                state[row] = value
            outputs[step, row] = after[0]
    return outputs, states


def _step(cell: str, x: ndarray, states: list[ndarray], kernel: ndarray, bias: ndarray) -> tuple[ndarray, ...]:
    h, g = states[0], states[0] @ kernel + bias
    if cell == "rnn":
        return (np.tanh(x + g),)
    if cell == "lstm":
        i, f, c, o = np.split(x + g, 4)
        c = _sigmoid(f) * states[1] + _sigmoid(i) * np.tanh(c)
        return _sigmoid(o) * np.tanh(c), c
    (x_r, x_z, x_n), (g_r, g_z, g_n) = np.split(x, 3), np.split(g, 3)
    r, z = _sigmoid(x_r + g_r), _sigmoid(x_z + g_z)
    return ((1 - z) * np.tanh(x_n + r * g_n) + z * h,)


def _sigmoid(x: ndarray) -> ndarray:
    return 1 / (1 + np.exp(-x))
