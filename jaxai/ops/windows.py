"""Sliding windows over images: padding, sizes and shifted views; and the choice between implementations."""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax.numpy as jnp
from jax import lax

from jaxai.typing import Array

type Pair = tuple[int, int]
type Padding = str | Sequence[Pair]


def taps(x: Array, window: Pair, strides: Pair, dilation: Pair = (1, 1)) -> list[Array]:
    """The `kh * kw` shifted views of x [B, H, W, C], one per element of the window in row order, each [B, H', W', C].

    Strides are applied by splitting the axes, H -> (H', stride), so that the gradient is a plain pad; that of a strided
    slice is a pad with interior zeros, with which second derivatives take twice the time.
    """
    (b, h, w, c), (sh, sw), (dh, dw) = x.shape, strides, dilation
    last_row, last_column = (window[0] - 1) * dh, (window[1] - 1) * dw
    rows, columns = (h - 1 - last_row) // sh + 1, (w - 1 - last_column) // sw + 1
    blocks_h, blocks_w = rows + last_row // sh, columns + last_column // sw
    x = shift_pad(x, ((0, blocks_h * sh - h), (0, blocks_w * sw - w)))
    x = x.reshape(b, blocks_h, sh, blocks_w, sw, c)
    starts = [(p * dh, q * dw) for p in range(window[0]) for q in range(window[1])]
    places = [(p // sh, p % sh, q // sw, q % sw) for p, q in starts]
    return [x[:, i : i + rows, u, j : j + columns, v] for i, u, j, v in places]


def shift_pad(x: Array, pads: Sequence[Pair], fill: float = 0.0) -> Array:
    """Pad (or, where negative, crop) the two middle axes of x [B, H, W, C]."""
    if all(tuple(axis) == (0, 0) for axis in pads):
        return x
    (top, bottom), (left, right) = pads
    return lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))


def window_pads(shape: Sequence[int], window: Sequence[int], strides: Pair, padding: Any) -> list[Pair]:
    """Resolve `padding` to ((low, high), (low, high)) for a window over the middle axes of `shape` [B, H, W, C]."""
    check_padding(padding)
    named = isinstance(padding, str)
    pads = lax.padtype_to_pads(shape[1:3], window, strides, padding) if named else list(padding)
    sizes = [n + low + high for n, (low, high) in zip(shape[1:3], pads, strict=True)]
    if any(size < k for size, k in zip(sizes, window, strict=True)):
        message = f"padding={padding!r} leaves x of shape {tuple(shape)} at {sizes}, smaller than the window {window}"
        raise ValueError(f"{message}; use padding='SAME' or a smaller window")
    return [(int(low), int(high)) for low, high in pads]


def check_padding(padding: object) -> None:
    """Raise ValueError unless `padding` is "SAME", "VALID" or a pair for each axis."""
    pairs = _is_pair(padding) and all(map(_is_pair, padding))
    if padding not in ("SAME", "VALID") and not pairs:
        raise ValueError(f"padding={padding!r}: give 'SAME', 'VALID' or two pairs ((low, high), (low, high))")


def pair(name: str, value: Any) -> Pair:
    """Return a pair from one positive integer for both axes or one for each; raise ValueError otherwise."""
    values = value if _is_pair(value) else (value, value)
    if not all(isinstance(number, int) and number > 0 for number in values):
        raise ValueError(f"{name}={value!r}: give a positive integer or a pair of them")
    return values[0], values[1]


def _is_pair(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and len(value) == 2


def choose(implementations: dict[str, Callable[..., Array]], name: str | None, fast: bool) -> Callable[..., Array]:
    """The implementation called `name`; None selects the non-lax implementation on CPU when `fast` is set."""
    if name is not None and name not in implementations:
        raise ValueError(f"implementation={name!r} is unknown; choose one of {sorted(implementations)} or None")
    if name is not None:
        return implementations[name]
    if not fast:
        return implementations["lax"]
    other = next(key for key in implementations if key != "lax")
    # Resolved at lowering: XLA sees only the chosen form, and a CPU host can export the other one for a GPU.
    return lambda *args: lax.platform_dependent(*args, cpu=implementations[other], default=implementations["lax"])
