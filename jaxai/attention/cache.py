"""A cache of keys and values for decoding: pure functions, which update a donated cache in place."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, DTypeLike

from jaxai.attention.position import ScoreMod
from jaxai.attention.reference import Call, finite, modified
from jaxai.typing import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens so far, with room for `capacity` tokens in each row; build it with `init`.

    `lengths` [B] int32 counts the tokens of each row and is the position of the next one, so rotate new queries and
    keys by `cache.lengths[:, None] + jnp.arange(T)[None]` before `update`. The buffers are keys [B, K, H, S] and values
    [B, K, S, V], the orders in which a query reads them. Donate the cache to `jit` to update it in place. NaN and
    infinities are stored as 0 and marked in `nonfinite` [B, K, S] bool, for keys and values together.

    >>> cache, step = KVCache.init(1, 4, 1, 2), jnp.ones((1, 1, 1, 2))
    >>> cache = cache.update(step, step).update(step, 3 * step)
    >>> cache.attend(step).tolist(), cache.lengths.tolist()  # two equal keys: the mean of their values
    ([[[[2.0, 2.0]]]], [2])
    """

    keys: Any
    values: Any
    nonfinite: Any
    lengths: Any
    window: int | None = field(metadata={"static": True})

    @classmethod
    def init(
        cls,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_size: int,
        *,
        value_head_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        window: int | None = None,
    ) -> "KVCache":
        """An empty cache.

        With `window` W it is a ring: token p takes slot p mod capacity, and a query at p sees the keys p - W < j <= p.
        The first query of a chunk of T tokens looks back W - 1 tokens when the last one is already written, so chunks
        need capacity >= W + T - 1, which `update` and `attend` check. Decoding one by one needs W.

        Raises ValueError for a size below 1 or a capacity below the window.
        """
        value_head_size = head_size if value_head_size is None else value_head_size
        sizes = {"batch": batch, "capacity": capacity, "kv_heads": kv_heads, "head_size": head_size}
        sizes |= {"value_head_size": value_head_size, "window": 1 if window is None else window}
        if wrong := {name: size for name, size in sizes.items() if size < 1}:
            raise ValueError(f"{', '.join(f'{name}={size}' for name, size in wrong.items())}: give at least 1")
        if window is not None and capacity < window:
            raise ValueError(f"capacity={capacity} cannot hold window={window}: raise it to window + chunk - 1")
        keys = jnp.zeros((batch, kv_heads, head_size, capacity), dtype)
        values = jnp.zeros((batch, kv_heads, capacity, value_head_size), dtype)
        nonfinite = jnp.zeros((batch, kv_heads, capacity), bool)
        return cls(keys, values, nonfinite, jnp.zeros(batch, jnp.int32), window)

    @property
    def overflowed(self) -> Bool[Array, " B"]:
        """Whether each row lost tokens: without a window, tokens past the capacity are counted but dropped."""
        return (self.lengths > self.keys.shape[3]) & (self.window is None)

    def update(
        self, key: Float[Array, "B T K H"], value: Float[Array, "B T K V"], lengths: Int[Array, " B"] | None = None
    ) -> "KVCache":
        """Append T tokens to each row; key [B, T, K, H] and value [B, T, K, V] are cast to the cache's dtype.

        `lengths` [B], 0 ... T, is the number of real tokens; the others are neither written nor counted. Without a
        window, tokens past the capacity are dropped: see `overflowed`.

        Raises ValueError for other shapes, or a chunk too long for the ring.
        """
        batch, heads, head_size, capacity = self.keys.shape
        for name, array, size in (("key", key, head_size), ("value", value, self.values.shape[3])):
            if array.ndim != 4 or array.shape != (batch, key.shape[1], heads, size):
                fit = f"[{batch}, T, {heads}, {size}], the T of key and value the same"
                raise ValueError(f"{name} of shape {array.shape} doesn't fit the cache: give {fit}")
        t = key.shape[1]
        self._check_chunk("key", t)
        _check_lengths(lengths, batch)
        steps = lax.broadcasted_iota(jnp.int32, (batch, t), 1)
        positions = self.lengths[:, None] + steps
        slots = positions if self.window is None else positions % capacity
        if lengths is not None:
            # Out of range, so that they are dropped; all slots differ, as `unique_indices` promises.
            slots = jnp.where(steps < lengths[:, None], slots, positions + capacity)
        rows = lax.broadcasted_iota(jnp.int32, (batch, t), 0)
        how = {"mode": "drop", "unique_indices": True}
        key, value = key.astype(self.keys.dtype), value.astype(self.values.dtype)
        # 0 * NaN is NaN: a masked one would leak through its weight of 0. Checked here, since a check in `attend` would
        # copy the values for each token.
        nonfinite = ~(jnp.isfinite(key).all(-1) & jnp.isfinite(value).all(-1))
        return replace(
            self,
            keys=self.keys.at[rows, :, :, slots].set(finite(key), **how),
            values=self.values.at[rows, :, slots].set(finite(value), **how),
            nonfinite=self.nonfinite.at[rows, :, slots].set(nonfinite, **how),
            lengths=self.lengths + (t if lengths is None else lengths.astype(jnp.int32)),
        )

    def attend(
        self,
        query: Float[Array, "B T N H"],
        lengths: Int[Array, " B"] | None = None,
        *,
        scale: float | None = None,
        is_causal: bool = True,
        logits_soft_cap: float | None = None,
        score_mod: ScoreMod | None = None,
        return_residual: bool = False,
    ) -> Float[Array, "B T N V"] | tuple[Float[Array, "B T N V"], Float[Array, "B T N"]]:
        """Attention of the last T tokens, query [B, T, N, H], over all tokens in the cache: `softmax(scale q k) v`.

        It reads the whole capacity and holds scores [B, N, T, S], as suits decoding and prefill in chunks. N is a
        multiple of K. Query i has the position `cache.lengths - T + i`; after a ragged update pass its `lengths` [B]
        too, for the positions `cache.lengths - lengths + i`, i < lengths. Scale is H**-0.5 by default. Scores go
        through `logits_soft_cap`, then `score_mod` with q and k in full, [B, 1, T, S] (see `jaxai.attention.position`).
        Without `is_causal` each query sees all tokens of its row (with a window, from the window's start).

        Returns [B, T, N, V] in query's dtype, 0 where a query sees no key and NaN where it sees NaN or infinity;
        `return_residual` adds the scores' log-sum-exp [B, T, N]. Softmax is in float32 or wider. Raises ValueError for
        other shapes, integers, a score_mod that changes the shape, or T too long for the ring.
        """
        batch, heads, head_size, capacity = self.keys.shape
        if query.ndim != 4 or query.shape[0] != batch or query.shape[3] != head_size or query.shape[2] % heads:
            fit = f"[{batch}, T, a multiple of {heads}, {head_size}]"
            raise ValueError(f"query of shape {query.shape} doesn't fit the cache: give {fit}")
        if not jnp.issubdtype(query.dtype, jnp.floating):
            raise ValueError(f"query has dtype {query.dtype}: give floats, for instance query.astype(jnp.float32)")
        _, t, n, _ = query.shape
        self._check_chunk("query", t)
        _check_lengths(lengths, batch)
        if logits_soft_cap is not None and not logits_soft_cap > 0:
            raise ValueError(f"logits_soft_cap={logits_soft_cap}: give a positive number or None")

        dtype = jnp.promote_types(jnp.promote_types(query.dtype, self.keys.dtype), jnp.float32)
        rows = jnp.swapaxes(finite(query), 1, 2).reshape(batch, heads, -1, head_size)
        factor = head_size**-0.5 if scale is None else scale
        score = _rows_times(rows, self.keys, dtype).reshape(batch, n, t, capacity) * factor
        q, k, visible = self._positions(t, lengths, is_causal)
        b, head = lax.iota(jnp.int32, batch).reshape(-1, 1, 1, 1), lax.iota(jnp.int32, n).reshape(1, -1, 1, 1)
        call = Call(query, self.keys, self.values, score_mod=score_mod, soft_cap=logits_soft_cap)
        score = modified(score, call, None, (b, head, q, k))
        nonfinite = jnp.repeat(self.nonfinite, n // heads, axis=1)[:, :, None]
        nonfinite |= jnp.swapaxes(~jnp.isfinite(query).all(-1), 1, 2)[..., None]
        score = jnp.where(nonfinite, jnp.nan, score)
        out, residual = _weigh(jnp.where(visible, score, -jnp.inf), self.values, query.dtype)
        return (out, residual) if return_residual else out

    def _positions(self, t: int, lengths: Array | None, is_causal: bool) -> tuple[Array, Array, Array]:
        """Positions of the last t tokens and of the cache's slots, and which slots they see, each [B, 1, t, S]."""
        shape = (self.keys.shape[0], 1, t, self.keys.shape[3])
        end = jnp.broadcast_to(self.lengths.reshape(-1, 1, 1, 1), shape)
        count = t if lengths is None else lengths.astype(jnp.int32).reshape(-1, 1, 1, 1)
        q = end - count + lax.broadcasted_iota(jnp.int32, shape, 2)
        k = lax.broadcasted_iota(jnp.int32, shape, 3)
        if self.window is not None:
            k = end - 1 - (end - 1 - k) % shape[3]  # position of the last token in this slot; negative if none
        visible = (k >= 0) & (k < end) & (q < end)
        if is_causal:
            visible &= k <= q
        if self.window is not None:
            visible &= k > q - self.window
        return q, k, visible

    def _check_chunk(self, name: str, t: int) -> None:
        if self.window is not None and self.window + t - 1 > (capacity := self.keys.shape[3]):
            most = f"{capacity - self.window + 1} tokens at a time or a capacity of {self.window + t - 1}"
            ring = f"window={self.window} in capacity={capacity}"
            raise ValueError(f"{name} of {t} tokens overruns {ring}: give {most}")


def _weigh(score: Array, values: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Softmax of score [B, N, T, S] times values [B, K, S, V], and the log-sum-exp; a row of -inf gives 0 and -inf."""
    (batch, n, t, s), heads = score.shape, values.shape[1]
    top = lax.stop_gradient(score.max(-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.exp(score - top)
    total = jnp.swapaxes(weights.sum(-1), 1, 2)
    safe = jnp.where(total == 0, 1, total)
    weights = weights.astype(jnp.promote_types(dtype, values.dtype)).reshape(batch, heads, -1, s)
    out = _rows_times(weights, values, score.dtype).reshape(batch, n, t, -1)
    out = jnp.swapaxes(out, 1, 2) / safe[..., None]
    residual = jnp.where(total == 0, -jnp.inf, jnp.log(safe) + jnp.swapaxes(top[..., 0], 1, 2))
    return out.astype(dtype), residual


def _rows_times(rows: Array, buffer: Array, dtype: jnp.dtype) -> Array:
    """rows [B, K, R, I] times buffer [B, K, I, J], summed in dtype; R counts the heads and queries of a key head."""
    count = rows.shape[2]
    if count == 1 and buffer.dtype.itemsize < 4:
        # XLA's CPU backend converts the whole buffer to float32 for one row: 17 ms where eight rows take 1.6.
        rows = jnp.pad(rows, ((0, 0), (0, 0), (0, 7), (0, 0)))
    return jnp.einsum("BKRI,BKIJ->BKRJ", rows, buffer, preferred_element_type=dtype)[:, :, :count]


def _check_lengths(lengths: Array | None, batch: int) -> None:
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths of shape {lengths.shape}: give one for each of the {batch} rows")
