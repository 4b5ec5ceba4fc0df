"""Convolution and transposed convolution: `jax.lax`'s numbers, by matrix products where XLA's CPU backend is slow.

It runs a plain convolution near the machine's peak, but derivatives of a strided or transposed one 10-100 times slower,
and any convolution inside `lax.scan` 12-18 times slower. Here those become slices, concatenations and one matrix
product: every derivative, of any order and mode, is again slices and products, and no custom rule is needed.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxai.typing import Array, Images

type Pair = tuple[int, int]
type Padding = str | Sequence[Pair]

_NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv(
    x: Images,
    kernel: Float[Array, "kernel_height kernel_width I F"],
    *,
    strides: int | Pair = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Pair = 1,
    feature_group_count: int = 1,
    implementation: str | None = None,
) -> Float[Array, "B out_height out_width F"]:
    """Two-dimensional convolution (cross-correlation), equal to `lax.conv_general_dilated` with NHWC, HWIO, NHWC.

    `y[b, i, j, f] = sum_{p, q, c} x[b, i*s + p*d - low, j*s + q*d - low, c] kernel[p, q, c, f]`; x [B, H, W, C],
    kernel [kh, kw, C / groups, F]. `padding` is "SAME", "VALID" or ((low, high), (low, high)).

    `implementation`: "lax" or "matmul" (patches and one matrix product; no dilation, no groups). None is `lax` on every
    platform but CPU, decided at lowering; on CPU it is "matmul" for strides (second-order derivatives of a strided
    `lax` convolution take 243 ms where this takes 19) and for at most 4 channels in (half the time) or out (a third,
    with the layers around it), else "lax".

    Raises ValueError for shapes that don't fit, NotImplementedError for a choice that can't do what was asked.
    """
    strides, dilation = pair("strides", strides), pair("kernel_dilation", kernel_dilation)
    _check_operands(x, kernel, feature_group_count)
    pads = _conv_pads(x, kernel, strides, padding, dilation)
    plain = dilation == (1, 1) and feature_group_count == 1

    def by_lax(x: Array, kernel: Array) -> Array:
        groups = {"rhs_dilation": dilation, "feature_group_count": feature_group_count}
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NUMBERS, **groups)

    few_outputs = strides == (1, 1) and kernel.shape[3] <= 4

    def by_matmul(x: Array, kernel: Array) -> Array:
        # With stride 1 a transposed convolution is a convolution; with few outputs its columns are the smaller array.
        form = _columns if few_outputs else _patches
        return form(x, kernel, strides, pads)

    reason = None if plain else "takes no kernel_dilation and no feature_group_count"
    fast = strides != (1, 1) or x.shape[3] <= 4 or few_outputs
    return choose({"lax": by_lax, "matmul": by_matmul}, implementation, reason, fast)(x, kernel)


def conv_transpose(
    x: Images,
    kernel: Float[Array, "kernel_height kernel_width C F"],
    *,
    strides: int | Pair = 1,
    padding: Padding = "SAME",
    implementation: str | None = None,
) -> Float[Array, "B out_height out_width F"]:
    """Transposed two-dimensional convolution, equal to `lax.conv_transpose` and `flax.linen.ConvTranspose`.

    The input is spread with `strides - 1` zeros between its pixels, padded, and convolved with the kernel as it is (not
    flipped, as Keras does). x [B, H, W, C], kernel [kh, kw, C, F]. "SAME" gives H * stride, "VALID"
    (H - 1) * stride + max(kh, stride); pairs ((low, high), (low, high)) pad the spread input.

    `implementation`: "lax" or "matmul" (one product to kh*kw*F columns that are shifted and added). None is "matmul" on
    CPU, where `lax`'s kernel gradient takes 40-80 times its forward pass, and `lax` elsewhere, decided at lowering.

    Raises ValueError for shapes that don't fit or an unknown implementation.
    """
    strides = pair("strides", strides)
    _check_operands(x, kernel, 1)
    pads = _transpose_pads(x, kernel, strides, padding)

    def by_lax(x: Array, kernel: Array) -> Array:
        return lax.conv_transpose(x, kernel, strides, pads, dimension_numbers=_NUMBERS)

    def by_matmul(x: Array, kernel: Array) -> Array:
        return _columns(x, kernel, strides, pads)

    return choose({"lax": by_lax, "matmul": by_matmul}, implementation, None, fast=True)(x, kernel)


def choose(
    implementations: dict[str, Callable[..., Array]], name: str | None, reason: str | None, fast: bool
) -> Callable[..., Array]:
    """The implementation called `name`; None is the one beside "lax" on CPU, if `fast` and no `reason` against it."""
    other = next(key for key in implementations if key != "lax")
    if name is not None and name not in implementations:
        raise ValueError(f"implementation={name!r} is unknown; choose one of {sorted(implementations)} or None")
    if name == other and reason:
        raise NotImplementedError(f"implementation={name!r} {reason}; use implementation='lax' or None")
    if name is not None:
        return implementations[name]
    if reason or not fast:
        return implementations["lax"]
    # Resolved while lowering: XLA sees the chosen form alone, and a CPU host can export the other for a GPU.
    return lambda *args: lax.platform_dependent(*args, cpu=implementations[other], default=implementations["lax"])


def taps(x: Array, window: Pair, strides: Pair) -> list[Array]:
    """The `kh * kw` shifted views of x [B, H, W, C] that a window sees, row by row, each [B, H', W', C].

    Strides are taken by splitting the axes, H -> (H', stride): the gradient of a plain slice of that is a plain pad,
    where a strided slice's is a pad with holes (second derivatives in twice the time).
    """
    (b, h, w, c), (sh, sw) = x.shape, strides
    rows, columns = (h - window[0]) // sh + 1, (w - window[1]) // sw + 1
    blocks_h, blocks_w = rows + (window[0] - 1) // sh, columns + (window[1] - 1) // sw
    x = shift_pad(x, ((0, blocks_h * sh - h), (0, blocks_w * sw - w)))
    x = x.reshape(b, blocks_h, sh, blocks_w, sw, c)
    starts = [(p, q) for p in range(window[0]) for q in range(window[1])]
    return [x[:, p // sh :, p % sh, q // sw :, q % sw][:, :rows, :columns] for p, q in starts]


def shift_pad(x: Array, pads: Sequence[Pair], fill: float = 0.0) -> Array:
    """Pad (or, where negative, crop) the two middle axes of x [B, H, W, C]."""
    if all(tuple(axis) == (0, 0) for axis in pads):
        return x
    (top, bottom), (left, right) = pads
    return lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))


def _patches(x: Array, kernel: Array, strides: Pair, pads: Sequence[Pair]) -> Array:
    kh, kw, _, f = kernel.shape
    patches = jnp.concatenate(taps(shift_pad(x, pads), (kh, kw), strides), axis=-1)
    b, h, w, k = patches.shape
    return (patches.reshape(b * h * w, k) @ kernel.reshape(k, f)).reshape(b, h, w, f)


def _columns(x: Array, kernel: Array, strides: Pair, pads: Sequence[Pair]) -> Array:
    """Pixel i reaches outputs i*s + low - tap; with tap = s*block + phase, blocks shift and phases are channels."""
    (b, h, w, c), (kh, kw, _, f), (sh, sw) = x.shape, kernel.shape, strides
    nh, nw = -(-kh // sh), -(-kw // sw)
    kernel = jnp.pad(kernel, ((0, nh * sh - kh), (0, nw * sw - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(nh, sh, nw, sw, c, f)[:, ::-1, :, ::-1].transpose(4, 0, 2, 1, 3, 5)
    columns = (x.reshape(b * h * w, c) @ kernel.reshape(c, -1)).reshape(b, h, w, -1)
    # lax.split, not slices: its gradient is one concatenation instead of nh*nw padded copies summed.
    blocks = lax.split(columns, [sh * sw * f] * (nh * nw), axis=3)
    shifts = [((nh - 1 - p, p), (nw - 1 - q, q)) for p in range(nh) for q in range(nw)]
    y = reduce(lax.add, map(shift_pad, blocks, shifts))
    h, w = h + nh - 1, w + nw - 1
    y = y.reshape(b, h, w, sh, sw, f).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * sh, w * sw, f)
    starts = [n * s - 1 - low for n, s, (low, _) in zip((nh, nw), strides, pads, strict=True)]
    sizes = _transposed_sizes(x.shape, (kh, kw), strides, pads)
    crops = [(-a, a + size - n) for a, size, n in zip(starts, sizes, y.shape[1:3], strict=True)]
    return shift_pad(y, crops)


def _conv_pads(x: Array, kernel: Array, strides: Pair, padding: Padding, dilation: Pair) -> list[Pair]:
    window = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
    return window_pads(x.shape, window, strides, padding)


def window_pads(shape: Sequence[int], window: Sequence[int], strides: Pair, padding: Padding) -> list[Pair]:
    """`padding` as ((low, high), (low, high)) for a window over the middle axes of `shape` [B, H, W, C]."""
    _check_padding(padding)
    named = isinstance(padding, str)
    pads = lax.padtype_to_pads(shape[1:3], window, strides, padding) if named else list(padding)
    sizes = [n + low + high for n, (low, high) in zip(shape[1:3], pads, strict=True)]
    if any(size < k for size, k in zip(sizes, window, strict=True)):
        message = f"padding={padding!r} leaves x of shape {tuple(shape)} at {sizes}, smaller than the window {window}"
        raise ValueError(f"{message}; use padding='SAME' or a smaller window")
    return [(int(low), int(high)) for low, high in pads]


def _transpose_pads(x: Array, kernel: Array, strides: Pair, padding: Padding) -> list[Pair]:
    """The padding of the spread input; for names the rule of `lax.conv_transpose`."""
    window = kernel.shape[:2]
    _check_padding(padding)
    if not isinstance(padding, str):
        pads = [(int(low), int(high)) for low, high in padding]
    elif padding == "SAME":
        lows = [k - 1 if s >= k else -(-(k + s - 2) // 2) for k, s in zip(window, strides, strict=True)]
        pads = [(low, k + s - 2 - low) for low, k, s in zip(lows, window, strides, strict=True)]
    else:
        pads = [(k - 1, s - 1 + max(k - s, 0)) for k, s in zip(window, strides, strict=True)]
    if min(sizes := _transposed_sizes(x.shape, window, strides, pads)) < 1:
        message = f"padding={padding!r} leaves {sizes} pixels of x {x.shape} with kernel {kernel.shape}"
        raise ValueError(f"{message}; use padding='SAME' or a smaller kernel")
    return pads


def _transposed_sizes(shape: Sequence[int], window: Sequence[int], strides: Pair, pads: Sequence[Pair]) -> list[int]:
    axes = zip(shape[1:3], window, strides, pads, strict=True)
    return [(n - 1) * s + 1 + low + high - k + 1 for n, k, s, (low, high) in axes]


def _check_padding(padding: Padding) -> None:
    if isinstance(padding, str):
        known = padding in ("SAME", "VALID")
    else:
        known = len(padding) == 2 and all(len(axis) == 2 for axis in padding)
    if not known:
        raise ValueError(f"padding={padding!r}: give 'SAME', 'VALID' or two pairs ((low, high), (low, high))")


def pair(name: str, value: int | Pair) -> Pair:
    """One positive integer for both axes, or one for each."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or min(values) < 1:
        raise ValueError(f"{name}={value!r}: give a positive integer or a pair of them")
    return values


def _check_operands(x: Array, kernel: Array, groups: int) -> None:
    if x.ndim != 4 or kernel.ndim != 4:
        message = f"x of shape {x.shape} and kernel of shape {kernel.shape}"
        raise ValueError(f"{message}: give x as [B, H, W, C] and kernel as [kh, kw, C / groups, F]")
    if groups < 1 or x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        message = f"x {x.shape} has {x.shape[3]} channels, kernel {kernel.shape} takes {kernel.shape[2]}"
        advice = f"they must be equal times feature_group_count={groups}, which must divide kernel's last axis"
        raise ValueError(f"{message}; {advice}")
    if x.dtype != kernel.dtype:
        raise ValueError(f"x is {x.dtype}, kernel {kernel.dtype}: cast one with .astype")
