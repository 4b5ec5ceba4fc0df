"""The definition of attention: a checked call, the elementwise operations on scores, and the whole as two einsums."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxai.attention.masks import Mask
from jaxai.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Call:
    """One attention call with its arguments checked: arrays of rank 4, one mask, scale written out.

    Scores are [B, N, T, S]; the array ``factor`` multiplies them as ``scale`` does. ``score_mod`` is a pytree with
    ``__call__``. ``dropout_key`` holds two uint32. ``offsets`` are the positions of the first query and key, None for 0
    and 0. ``nan_flag`` [B, S, K] is set when a call is cut into blocks. ``cache_buster`` is a new object for each call
    with a plain function, which may have changed since it was last traced.
    """

    query: Any
    key: Any
    value: Any
    bias: Any = None
    mask: Mask | None = None
    score_mod: Any = None
    sinks: Any = None
    dropout_key: Any = None
    offsets: Any = None
    nan_flag: Any = None
    factor: Any = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    soft_cap: float | None = dataclasses.field(default=None, metadata={"static": True})
    dropout_rate: float = dataclasses.field(default=0.0, metadata={"static": True})
    precision: Any = dataclasses.field(default=None, metadata={"static": True})
    cache_buster: Any = dataclasses.field(default=None, metadata={"static": True})

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, T, S, N, K."""
        return *self.query.shape[:2], self.key.shape[1], self.query.shape[2], self.key.shape[2]

    @property
    def dtype(self) -> Any:
        """The dtype of scores and softmax: at least float32."""
        return jnp.promote_types(jnp.result_type(self.query, self.key, self.value), jnp.float32)


def scaled(x: Array, call: Call) -> Array:
    """Queries or scores, in ``call.dtype``, times the call's scale."""
    x = x * call.dtype.type(call.scale)
    return x if call.factor is None else x * call.factor.astype(call.dtype)


def modified(scores: Array, call: Call, bias: Any, indices: tuple[Array, Array, Array, Array]) -> Array:
    """Scores [B, N, t, s] after soft cap, score function and bias, in this order."""
    dtype = scores.dtype
    if call.soft_cap is not None:
        scores = call.soft_cap * jnp.tanh(scores / call.soft_cap)
    if call.score_mod is not None:
        shape = scores.shape
        scores = call.score_mod(scores, *indices)
        if jnp.shape(scores) != shape:
            raise ValueError(f"score_mod changed the shape of the scores from {shape} to {jnp.shape(scores)}: keep it")
    if bias is not None:
        scores = scores + bias
    return scores.astype(dtype)


def finite(x: Array) -> Array:
    """x with NaN and infinities replaced by 0."""
    return jnp.where(jnp.isfinite(x), x, 0)


def nan_flag(x: Array) -> Array:
    """A summand [...] of the scores: NaN where x [..., H] has NaN or infinities, 0 elsewhere.

    0 * NaN is NaN, so a NaN in a masked value would leak through its weight of 0. The products therefore take `finite`
    arrays, and the NaN is added to the scores, where the mask can remove it.
    """
    return (lax.stop_gradient(x) * 0).sum(-1)


def dropout_mask(call: Call, b: Array, n: Array, q: Array, k: Array) -> Array:
    """A factor for each weight, 1 / (1 - rate) or 0: a hash of key and position, independent of block sizes.

    Two rounds of the lowbias32 finaliser (Wellons 2018, https://nullprogram.com/blog/2018/07/31/), one over (b, n, q)
    and one over k.
    """

    def mixed(x):
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        return x ^ (x >> 16)

    b, n, q, k = (x.astype(jnp.uint32) for x in (b, n, q, k))
    row = mixed(mixed(mixed(b + call.dropout_key[0]) + n) + q) ^ call.dropout_key[1]
    bits = mixed(mixed(row + k * jnp.uint32(0x9E3779B9)) ^ row)
    threshold = jnp.uint32(min(int(call.dropout_rate * 2**32), 2**32 - 1))
    return jnp.where(bits >= threshold, call.dtype.type(1 / (1 - call.dropout_rate)), 0)


def with_sinks(out: Array, lse: Array, sinks: Array | None) -> tuple[Array, Array]:
    """out [B, T, N, V] and lse [B, T, N] with one more logit per head in the softmax, which has no value."""
    if sinks is None:
        return out, lse
    logit = sinks.astype(lse.dtype)[None, None]
    return out * jax.nn.sigmoid(lse - logit)[..., None], jnp.logaddexp(lse, logit)


def block_indices(shape: tuple[int, ...], q0: Any = 0, k0: Any = 0) -> tuple[Array, Array, Array, Array]:
    """The int32 b [B, 1, 1, 1], n [1, N, 1, 1], q [1, 1, t, 1], k [1, 1, 1, s] of a block [B, N, t, s] at q0, k0."""
    b, n, q, k = (jnp.arange(size, dtype=np.int32) for size in shape)
    return b[:, None, None, None], n[None, :, None, None], (q + q0)[None, None, :, None], (k + k0)[None, None, None]


def reference(call: Call) -> tuple[Array, Array]:
    """Attention and its log-sum-exp, [B, T, N, V] and [B, T, N], with the whole score matrix."""
    B, T, S, N, K = call.sizes
    query, key, value = call.query, call.key, call.value
    indices = block_indices((B, N, T, S))
    nan = jnp.zeros((), call.dtype)
    if call.mask is not None:
        nan_query, nan_key = nan_flag(query), nan_flag(key) + nan_flag(value)
        nan = nan_query.swapaxes(1, 2)[..., None] + jnp.repeat(nan_key.swapaxes(1, 2), N // K, 1)[:, :, None]
        query, key, value = finite(query), finite(key), finite(value)
    query = query.reshape(B, T, K, N // K, -1)
    einsum = functools.partial(jnp.einsum, precision=call.precision, preferred_element_type=call.dtype)
    scores = scaled(einsum("BTKGH,BSKH->BKGTS", query, key).reshape(B, N, T, S), call)
    scores = modified(scores, call, call.bias, indices)
    if call.mask is not None:
        scores = jnp.where(call.mask.block(*indices), scores + nan, -jnp.inf)
    maximum = lax.stop_gradient(scores.max(-1, keepdims=True))
    shift = jnp.where(maximum == -jnp.inf, 0, maximum)
    weights = jnp.exp(scores - shift)
    total = weights.sum(-1, keepdims=True)
    safe = jnp.where(total == 0, 1, total)
    lse = jnp.where(total == 0, -jnp.inf, shift + jnp.log(safe))[..., 0]
    weights = weights / safe
    if call.dropout_rate:
        weights = weights * dropout_mask(call, *indices)
    weights = weights.astype(value.dtype).reshape(B, K, N // K, T, S)
    out = einsum("BKGTS,BSKV->BTKGV", weights, value).reshape(B, T, N, -1)
    out, lse = with_sinks(out, lse.swapaxes(1, 2), call.sinks)
    return out.astype(call.query.dtype), lse
