"""Convolution and transposed convolution: `jax.lax`'s results, by matrix products where XLA's CPU backend is slow.

XLA on CPU runs a plain convolution near the machine's peak, but derivatives of a strided or transposed one are 10-100
times slower, those of a grouped one 13-80 times, and any convolution inside `lax.scan` 12-18 times. Here these become
slices, concatenations and one matrix product (a batch of products for groups, multiply-adds if depthwise). Derivatives
of any order and mode are again slices and products, so no custom rule is needed.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jaxai.ops.windows import Padding, Pair, check_padding, choose, pair, shift_pad, taps, window_pads
from jaxai.typing import Array, Images

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

    `y[b, i, j, f] = sum_{p, q, c} x[b, i*s + p*d - low, j*s + q*d - low, g*I + c] kernel[p, q, c, f]`, where g is the
    group of f; x [B, H, W, groups * I], kernel [kh, kw, I, F]. With as many groups as channels it is depthwise (Keras'
    kernel is then [kh, kw, C, F / C]). `padding` is "SAME", "VALID" or ((low, high), (low, high)); "SAME" with a 3x3
    window at stride 2 pads an even image by (0, 1), as in Keras; PyTorch's padding=1 is ((1, 1), (1, 1)).

    `implementation` is "lax" or "matmul" (patches and a product per group; depthwise: shifted multiply-adds). None
    selects "lax", but on CPU, decided at lowering, "matmul" where it is faster: strides (second derivatives 13 times as
    fast), groups (gradients 13-80 times), depthwise (4-18 times), at most 4 input or output channels (2-3 times), and
    at least 64 output channels on at most 8x8 pixels, or 16x16 if there are at most half as many input channels
    (training 1.2-1.9 times as fast, a forward pass alone half as fast). Dilation alone uses "lax": "matmul" has 0.7 of
    its speed, but 20 times inside a `lax.scan`.

    Raises ValueError for incompatible shapes or an unknown implementation.
    """
    strides, dilation = pair("strides", strides), pair("kernel_dilation", kernel_dilation)
    groups = feature_group_count
    _check_operands(x, kernel, groups)
    window = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
    pads = window_pads(x.shape, window, strides, padding)
    plain = strides == dilation == (1, 1) and groups == 1
    few_outputs = plain and kernel.shape[3] <= 4
    most_pixels = 256 if kernel.shape[3] >= 2 * x.shape[3] else 64
    small_maps = plain and kernel.shape[3] >= 64 and x.shape[1] * x.shape[2] <= most_pixels

    def by_lax(x: Array, kernel: Array) -> Array:
        options = {"rhs_dilation": dilation, "feature_group_count": groups, "dimension_numbers": _NUMBERS}
        return lax.conv_general_dilated(x, kernel, strides, pads, **options)

    def by_matmul(x: Array, kernel: Array) -> Array:
        if few_outputs:  # at stride 1 a transposed convolution is a convolution; columns are smaller than patches
            return _columns(x, kernel, strides, pads)
        if groups > 1 and kernel.shape[2] == 1:
            return _depthwise(x, kernel, strides, pads, dilation)
        form = partial(_patches, strides=strides, pads=pads, dilation=dilation)
        return _grouped(x, kernel, groups, form) if groups > 1 else form(x, kernel)

    fast = strides != (1, 1) or groups > 1 or x.shape[3] <= 4 or few_outputs or small_maps
    return choose({"lax": by_lax, "matmul": by_matmul}, implementation, fast)(x, kernel)


def conv_transpose(
    x: Images,
    kernel: Float[Array, "kernel_height kernel_width C F"],
    *,
    strides: int | Pair = 1,
    padding: Padding = "SAME",
    implementation: str | None = None,
) -> Float[Array, "B out_height out_width F"]:
    """Transposed two-dimensional convolution, equal to `lax.conv_transpose` and `flax.linen.ConvTranspose`.

    The input is dilated with `strides - 1` zeros between its pixels, padded, and convolved with the unflipped kernel.
    x [B, H, W, C], kernel [kh, kw, C, F]. "SAME" gives H * stride, "VALID" (H - 1) * stride + max(kh, stride); pairs
    ((low, high), (low, high)) pad the dilated input. Keras and PyTorch compute the gradient of a convolution: their
    kernel is this one with both spatial axes flipped, as [kh, kw, F, C] and [C, F, kh, kw]. PyTorch's padding=p is
    (kh - 1 - p, kh - 1 - p) here; Keras' "SAME" and "VALID" are the same as here.

    `implementation` is "lax" or "matmul" (one product to kh*kw*F columns that are shifted and added). None, decided at
    lowering, selects "matmul" on CPU, where `lax`'s kernel gradient takes 40-80 times its forward pass, else "lax".

    Raises ValueError for incompatible shapes or an unknown implementation.
    """
    strides = pair("strides", strides)
    _check_operands(x, kernel, 1)
    pads = _transpose_pads(x, kernel, strides, padding)

    def by_lax(x: Array, kernel: Array) -> Array:
        return lax.conv_transpose(x, kernel, strides, pads, dimension_numbers=_NUMBERS)

    def by_matmul(x: Array, kernel: Array) -> Array:
        return _columns(x, kernel, strides, pads)

    return choose({"lax": by_lax, "matmul": by_matmul}, implementation, fast=True)(x, kernel)


def _patches(x: Array, kernel: Array, strides: Pair, pads: Sequence[Pair], dilation: Pair) -> Array:
    kh, kw, c, f = kernel.shape
    if strides != (1, 1) == dilation and kh % strides[0] == kw % strides[1] == 0:
        return _blocks(x, kernel, strides, pads)
    patches = jnp.stack(taps(shift_pad(x, pads), (kh, kw), strides, dilation), axis=3)
    b, h, w, *_ = patches.shape
    return (patches.reshape(b * h * w, kh * kw * c) @ kernel.reshape(kh * kw * c, f)).reshape(b, h, w, f)


def _blocks(x: Array, kernel: Array, strides: Pair, pads: Sequence[Pair]) -> Array:
    """`_patches` for strides that divide the kernel's sizes: space-to-depth, then stride 1 and fewer taps.

    This avoids strided slices, whose gradients take a tenth of the time of a GAN's discriminator with R1 and R2.
    """
    (b, *sizes, c), (kh, kw, _, f), (sh, sw) = x.shape, kernel.shape, strides
    axes = zip(sizes, (kh, kw), strides, pads, strict=True)
    h, w = ((n + low + high - k) // s + k // s for n, k, s, (low, high) in axes)
    ends = [(low, many * s - n - low) for n, many, s, (low, _) in zip(sizes, (h, w), strides, pads, strict=True)]
    x = shift_pad(x, ends).reshape(b, h, sh, w, sw, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, sh * sw * c)
    kernel = kernel.reshape(kh // sh, sh, kw // sw, sw, c, f).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(kh // sh, kw // sw, sh * sw * c, f)
    return _patches(x, kernel, (1, 1), [(0, 0), (0, 0)], (1, 1))


def _grouped(x: Array, kernel: Array, groups: int, form: Callable[[Array, Array], Array]) -> Array:
    """Apply `form` to each group's channels by vmap, so that its product becomes a batched one."""
    x = x.reshape(*x.shape[:3], groups, -1)
    y = jax.vmap(form, in_axes=3, out_axes=3)(x, kernel.reshape(*kernel.shape[:3], groups, -1))
    return y.reshape(*y.shape[:3], -1)


def _depthwise(x: Array, kernel: Array, strides: Pair, pads: Sequence[Pair], dilation: Pair) -> Array:
    """Multiply-adds in at least float32. Without the barriers XLA fuses the producer of x (or of y's gradient) into
    every tap and recomputes it there: the input gradient after a tanh takes 16 ms instead of 1."""
    (kh, kw, _, f), exact = kernel.shape, jnp.promote_types(x.dtype, jnp.float32)
    x = lax.optimization_barrier(jnp.repeat(x, f // x.shape[3], axis=3))
    views = taps(shift_pad(x, pads), (kh, kw), strides, dilation)
    rows = kernel.astype(exact).reshape(kh * kw, 1, 1, 1, f)
    y = reduce(lax.add, [view.astype(exact) * row for view, row in zip(views, rows, strict=True)])
    return lax.optimization_barrier(y.astype(x.dtype))


def _columns(x: Array, kernel: Array, strides: Pair, pads: Sequence[Pair]) -> Array:
    """Transposed convolution by one matrix product to columns, which are then shifted and added.

    Pixel i contributes to outputs i*s + low - tap; with tap = s*block + phase, blocks shift and phases are channels.
    """
    (b, h, w, c), (kh, kw, _, f), (sh, sw) = x.shape, kernel.shape, strides
    nh, nw = -(-kh // sh), -(-kw // sw)
    kernel = jnp.pad(kernel, ((0, nh * sh - kh), (0, nw * sw - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(nh, sh, nw, sw, c, f)[:, ::-1, :, ::-1].transpose(4, 0, 2, 1, 3, 5)
    exact = jnp.promote_types(x.dtype, jnp.float32)  # dtype of the sum over taps, which would round in bfloat16
    columns = jnp.matmul(x.reshape(b * h * w, c), kernel.reshape(c, -1), preferred_element_type=exact)
    columns = columns.reshape(b, h, w, -1)
    # lax.split, not slices: its gradient is one concatenation instead of nh*nw padded copies summed.
    blocks = lax.split(columns, [sh * sw * f] * (nh * nw), axis=3)
    shifts = [((nh - 1 - p, p), (nw - 1 - q, q)) for p in range(nh) for q in range(nw)]
    y = reduce(lax.add, map(shift_pad, blocks, shifts))
    h, w = h + nh - 1, w + nw - 1
    y = y.reshape(b, h, w, sh, sw, f).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * sh, w * sw, f)
    starts = [n * s - 1 - low for n, s, (low, _) in zip((nh, nw), strides, pads, strict=True)]
    sizes = _transposed_sizes(x.shape, (kh, kw), strides, pads)
    crops = [(-a, a + size - n) for a, size, n in zip(starts, sizes, y.shape[1:3], strict=True)]
    return shift_pad(y, crops).astype(x.dtype)


def _transpose_pads(x: Array, kernel: Array, strides: Pair, padding: Padding) -> list[Pair]:
    """The padding of the dilated input; "SAME" and "VALID" follow the rule of `lax.conv_transpose`."""
    window = kernel.shape[:2]
    check_padding(padding)
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
