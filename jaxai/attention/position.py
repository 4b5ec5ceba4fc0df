"""Positions of tokens: rotary embedding, and score functions that depend on the distance or cap the score.

A score function is `f(score, b, n, q, k) -> score` on one block of scores [B, N, t, s]; b [B, 1, 1, 1] and
n [1, N, 1, 1] count rows and heads, q [1, 1, t, 1] and k [1, 1, 1, s] are the positions, each in steps of one. If
positions differ by row or jump, as in a ring buffer, q and k both have the full shape [B, 1, t, s].
The score functions of this module are pytrees: they pass through `jit` and are differentiable in their arrays.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Num

from jaxai.typing import Array, Float, Int

type ScoreMod = Callable[[Array, Array, Array, Array, Array], Array]

Score = Float[Array, "B N t s"]
Index = Int[Array | np.ndarray, "_ _ _ _"]

_STATIC = {"static": True}


def rotary(
    x: Float[Array, "*B T N H"], positions: Num[Array, "..."] | None = None, *, base: float = 10000.0
) -> Float[Array, "*B T N H"]:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, equation 34) of queries or keys.

    Feature i < H/2 and its partner i + H/2 turn by the angle `a = position * base**(-2i / H)`:
    `y[i] = x[i] cos a - x[i + H/2] sin a`, `y[i + H/2] = x[i + H/2] cos a + x[i] sin a`. Pairing the halves is
    GPT-NeoX's and LLaMA's convention in JAX; the paper pairs neighbours, the same up to a permutation of features.

    x [..., T, N, H]; positions, integer or float, [T] or [B, T], None is 0 ... T - 1. Angles and products are in
    float32 or wider, the result in x's dtype. Raises ValueError for integer x, odd H or positions of another shape.

    >>> rotary(jnp.ones((1, 2, 1, 2)), jnp.array([0, np.pi / 2]))[0, :, 0].round(3).tolist()  # a quarter turn
    [[1.0, 1.0], [-1.0, 1.0]]
    """
    *_, t, _, h = x.shape
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}: give floats, for instance x.astype(jnp.float32)")
    if h % 2:
        raise ValueError(f"x of shape {x.shape} has {h} features a head: rotary turns pairs, make it even")
    positions = jnp.arange(t) if positions is None else positions
    if positions.ndim < 1 or positions.shape != x.shape[-2 - positions.ndim : -2]:
        raise ValueError(f"positions of shape {positions.shape} for x {x.shape}: give [T] or [B, T]")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    frequencies = jnp.asarray(base ** (-np.arange(0, h, 2) / h), dtype)
    shape = (1,) * (x.ndim - 2 - positions.ndim) + positions.shape
    angles = positions.astype(dtype).reshape(*shape, 1, 1) * frequencies.reshape((1,) * (x.ndim - 1) + (-1,))
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Alibi:
    """The score function of `alibi`, slopes [N]; unchecked, as JAX rebuilds pytrees with arbitrary leaves."""

    slopes: Any

    def __call__(self, score: Score, b: Index, n: Index, q: Index, k: Index) -> Score:
        _check_heads("slopes", self.slopes.shape[0], score)
        slopes = self.slopes.astype(score.dtype).reshape(1, -1, 1, 1)
        return score - slopes * jnp.abs(q - k).astype(score.dtype)


def alibi(slopes: Float[Array, " N"] | int | np.integer) -> Alibi:
    """Attention with linear biases, `score - slopes[n] |q - k|` (Press et al. 2022, arXiv:2108.12409).

    Under a causal mask it is the paper's `score - m (q - k)`. Give slopes [N], for instance to learn them, or the
    number of heads for the paper's slopes: `2**(-8 i / N)`, i = 1 ... N, if N is a power of two; otherwise those of the
    power P below it, then every other one of 2 P. Raises ValueError for no heads, or scores with another number.

    >>> alibi(2).slopes.tolist(), alibi(3).slopes.tolist()
    ([0.0625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    if not isinstance(slopes, int | np.integer):
        return Alibi(slopes)
    slopes = int(slopes)
    if slopes < 1:
        raise ValueError(f"slopes={slopes}: give a positive number of heads or an array [N]")
    power = 1 << (slopes.bit_length() - 1)
    exponents = [8 * i / power for i in range(1, power + 1)] + [8 * (i + 0.5) / power for i in range(slopes - power)]
    return Alibi(jnp.asarray(2.0 ** -np.asarray(exponents)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RelativeBias:
    """The score function of `relative_bias`, with its table [buckets, N]."""

    table: Any
    bidirectional: bool = field(metadata=_STATIC)
    max_distance: int = field(metadata=_STATIC)

    def __call__(self, score: Score, b: Index, n: Index, q: Index, k: Index) -> Score:
        _check_heads("table", self.table.shape[1], score)
        _, _, t, s = score.shape
        table = self.table.astype(score.dtype)
        if q.shape != (1, 1, t, 1) or k.shape != (1, 1, 1, s):
            return score + jnp.moveaxis(table[self._bucket(k - q)[:, 0]], 3, 1)
        # Steps of one have t + s - 1 distances, and each query's row is a window on them. On [1, 8, 512, 512] a gather
        # entry by entry takes three times as long, and its gradient, a scatter of t * s entries, a third longer.
        # The bias of each distance is chosen by a sum, as XLA's CPU backend would repeat a gather inside the windows.
        distances = k[0, 0, 0, 0] - q[0, 0, 0, 0] + jnp.arange(1 - t, s)
        chosen = self._bucket(distances)[None] == jnp.arange(table.shape[0])[:, None]
        row = jnp.where(chosen[:, None], table[:, :, None], 0).sum(0)
        window = partial(lax.dynamic_slice_in_dim, row, slice_size=s, axis=1)
        return score + jax.vmap(window, out_axes=1)(jnp.arange(t - 1, -1, -1))[None]

    def _bucket(self, distance: Array | np.ndarray) -> Array:
        buckets = _buckets(self.table.shape[0], self.bidirectional, self.max_distance)
        return jnp.asarray(buckets)[jnp.clip(distance, -self.max_distance, self.max_distance) + self.max_distance]


def relative_bias(
    table: Float[Array, "buckets N"], *, bidirectional: bool = True, max_distance: int = 128
) -> RelativeBias:
    """T5's learned bias of the distance, `score + table[bucket(k - q), n]` (Raffel et al. 2020, arXiv:1910.10683).

    Half of the m buckets (of `buckets`, or of the half for each direction with `bidirectional`) hold one distance
    d = |k - q| each; the rest grow with its logarithm, `m/2 + floor(log(2d/m) / log(2 max_distance/m) * m/2)`, and the
    last holds all greater d. Keys ahead use the upper half of the table; without `bidirectional` their distance is 0.
    The bucket function is that of mesh-tensorflow and Hugging Face. A gradient scatters t windows, not t * s entries.

    Raises ValueError for too few buckets or a max_distance within the exact ones.

    >>> zero, q, k = jnp.zeros((1, 1, 1, 1), int), jnp.full((1, 1, 1, 1), 2), jnp.arange(4).reshape(1, 1, 1, 4)
    >>> bias = relative_bias(jnp.arange(8.0)[:, None], max_distance=16)
    >>> bias(jnp.zeros((1, 1, 1, 4)), zero, zero, q, k).tolist()
    [[[[2.0, 1.0, 0.0, 5.0]]]]
    """
    exact = table.shape[0] // (4 if bidirectional else 2)
    if exact < 1:
        raise ValueError(f"table of shape {table.shape} has too few buckets: give 4, or 2 without bidirectional")
    if max_distance <= exact:
        raise ValueError(f"max_distance={max_distance} must exceed the {exact} exact distances of table {table.shape}")
    return RelativeBias(table, bidirectional, max_distance)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SoftCap:
    """The score function of `soft_cap`."""

    cap: float = field(metadata=_STATIC)

    def __call__(self, score: Score, b: Index, n: Index, q: Index, k: Index) -> Score:
        return self.cap * jnp.tanh(score / self.cap)


def soft_cap(cap: float) -> SoftCap:
    """Scores limited to (-cap, cap): `cap tanh(score / cap)` (Gemma 2, arXiv:2408.00118, section 2).

    Raises ValueError unless cap > 0.

    >>> zero = jnp.zeros((1, 1, 1, 1), int)
    >>> soft_cap(50.0)(jnp.full((1, 1, 1, 1), 1000.0), zero, zero, zero, zero).item()
    50.0
    """
    if not cap > 0:
        raise ValueError(f"cap={cap}: give a positive number, or leave the cap out")
    return SoftCap(float(cap))


def _buckets(count: int, bidirectional: bool, max_distance: int) -> np.ndarray:
    """T5's bucket of each distance k - q in -max_distance ... max_distance, in NumPy, to round alike on all devices."""
    distance = np.arange(-max_distance, max_distance + 1)
    ahead = distance > 0
    count, offset = (count // 2, ahead * (count // 2)) if bidirectional else (count, 0)
    distance = np.abs(distance) if bidirectional else np.where(ahead, 0, -distance)
    exact = count // 2
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / exact) / np.float32(math.log(max_distance / exact))
    far = np.minimum(exact + (ratio * (count - exact)).astype(np.int32), count - 1)
    return np.asarray(np.where(distance < exact, distance, far) + offset, np.int32)


def _check_heads(name: str, heads: int, score: Array) -> None:
    if heads != score.shape[1]:
        raise ValueError(f"{name} for {heads} heads on scores {score.shape}: give one for each of the {score.shape[1]}")
