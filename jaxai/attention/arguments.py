"""The arguments of attention, checked and gathered into a `Call`."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxai.attention.masks import Causal, FunctionMask, Lengths, Mask, Segments, SlidingWindow, as_mask
from jaxai.attention.reference import Call
from jaxai.typing import Array


def checked(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: Any = None,
    mask: Any = None,
    *,
    scale: Any = None,
    is_causal: bool = False,
    query_seq_lengths: Any = None,
    key_value_seq_lengths: Any = None,
    local_window_size: int | tuple[int, int] | None = None,
    score_mod: Callable[..., Array] | None = None,
    logits_soft_cap: float | None = None,
    sinks: Any = None,
    segment_ids: Any = None,
    dropout_rate: float = 0.0,
    dropout_key: Any = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Call, bool]:
    """A call from the arguments of `dot_product_attention`, and whether they have a batch axis."""
    query, key, value, batched = checked_arrays(query, key, value)
    B, T, N, H = query.shape
    scores = B, N, T, key.shape[1]
    if bias is not None:
        bias = checked_scores("bias", bias, scores, jnp.floating)
    number, factor = checked_scale(1 / math.sqrt(H) if scale is None else scale)
    lengths = query_seq_lengths, key_value_seq_lengths
    masks = checked_masks(scores, mask, is_causal, local_window_size, lengths, segment_ids)
    score_mod, plain = checked_score_mod(score_mod)
    soft_cap = checked_soft_cap(logits_soft_cap)
    sinks = None if sinks is None else checked_sinks(sinks, N)
    rate, bits = checked_dropout(dropout_rate, dropout_key)
    return Call(
        *(query, key, value, bias),
        functools.reduce(lambda x, y: x & y, masks) if masks else None,
        *(score_mod, sinks, bits),
        factor=factor,
        scale=number,
        soft_cap=soft_cap,
        dropout_rate=rate,
        precision=precision,
        cache_buster=object() if plain or has_function(masks) else None,
    ), batched


# Query, key and value


def checked_arrays(query: Any, key: Any, value: Any) -> tuple[Array, Array, Array, bool]:
    """The three arrays with a batch axis, and whether it was there before."""
    arrays = {"query": jnp.asarray(query), "key": jnp.asarray(key), "value": jnp.asarray(value)}
    for name, x in arrays.items():
        if x.ndim not in (3, 4):
            raise ValueError(f"{name} has shape {x.shape}: give [B, time, heads, size], or without B")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {x.dtype}: give floats, for instance {name}.astype(jnp.float32)")
    query, key, value = arrays.values()
    if not query.ndim == key.ndim == value.ndim:
        raise ValueError(
            f"query, key and value have {query.ndim}, {key.ndim} and {value.ndim} axes: give all or none a batch axis"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value have dtypes {query.dtype}, {key.dtype} and {value.dtype}: cast them to one"
        )
    batched = query.ndim == 4
    if not batched:
        query, key, value = query[None], key[None], value[None]
    if 0 in query.shape + key.shape + value.shape:
        raise ValueError(
            f"query, key and value have shapes {query.shape}, {key.shape}, {value.shape}: no axis may be empty"
        )
    transposed = (
        "; they look like [B, heads, time, size]: swap axes 1 and 2 with .swapaxes(-2, -3)"
        if key.shape[1] == value.shape[1] and query.shape[1] % key.shape[1] == 0 and key.shape[2] == value.shape[2]
        else ""
    )
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key has shape {key.shape} and value {value.shape}: all but the last axis must agree")
    if query.shape[0] != key.shape[0]:
        raise ValueError(f"query has batch size {query.shape[0]} and key {key.shape[0]}: they must agree")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"query has head size {query.shape[3]} and key {key.shape[3]}: they must agree")
    if query.shape[2] % key.shape[2]:
        raise ValueError(
            f"query has {query.shape[2]} heads and key {key.shape[2]}, of shapes {query.shape} and {key.shape}: "
            f"the former must be a multiple of the latter{transposed}"
        )
    return query, key, value, batched


# Scores


def checked_scale(scale: Any) -> tuple[float, Array | None]:
    """The scale as a number and as an array, of which one is trivial: an array may be differentiated."""
    if isinstance(scale, int | float | np.number):
        return float(scale), None
    factor = jnp.asarray(scale)
    if factor.shape:
        raise ValueError(f"scale has shape {factor.shape}: give one number; scale features in the query")
    return 1.0, factor


def checked_scores(name: str, x: Any, scores: tuple[int, ...], kind: Any) -> Array:
    """An array that broadcasts to the scores, as one of rank 4."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, kind):
        raise ValueError(
            f"{name} has dtype {x.dtype}: a mask is bool (True: visible), a bias float; cast it or use the other"
        )
    if x.ndim > 4 or any(have not in (1, want) for have, want in zip(x.shape[::-1], scores[::-1], strict=False)):
        swapped = (scores[0], scores[2], scores[1], scores[3])
        hint = (
            "; query and key look like [B, heads, time, size]: swap axes 1 and 2"
            if x.ndim == 4 and x.shape[1:3] == swapped[1:3] != scores[1:3]
            else ""
        )
        raise ValueError(f"{name} has shape {x.shape}: it must broadcast to [B, N, T, S] = {list(scores)}{hint}")
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def checked_score_mod(score_mod: Any) -> tuple[Any, bool]:
    """A score function as a pytree, and whether it was a plain function; those of `position` are pytrees already."""
    if score_mod is None:
        return None, False
    plain = jax.tree_util.all_leaves([score_mod])
    if not callable(score_mod):
        raise ValueError(
            f"score_mod={score_mod!r} must be a function score_mod(score, b, n, q, k) of a block of scores"
        )
    return (jax.tree_util.Partial(score_mod) if plain else score_mod), plain


def checked_soft_cap(logits_soft_cap: Any) -> float | None:
    """A positive number, or None."""
    if logits_soft_cap is None:
        return None
    logits_soft_cap = checked_number("logits_soft_cap", logits_soft_cap)
    if not logits_soft_cap > 0:
        raise ValueError(f"logits_soft_cap={logits_soft_cap} must be positive, or None for no cap")
    return logits_soft_cap


def checked_sinks(sinks: Any, heads: int) -> Array:
    """Floats [N]."""
    sinks = jnp.asarray(sinks)
    if sinks.shape != (heads,) or not jnp.issubdtype(sinks.dtype, jnp.floating):
        raise ValueError(
            f"sinks has shape {sinks.shape} and dtype {sinks.dtype}: give one float logit a head, [{heads}]"
        )
    return sinks


# Masks


def checked_masks(
    scores: tuple[int, int, int, int],
    mask: Any,
    is_causal: bool,
    local_window_size: int | tuple[int, int] | None,
    lengths: tuple[Any, Any],
    segment_ids: Any,
) -> list[Mask]:
    """The masks that the arguments ask for; a key must be visible in each of them."""
    B, _, T, S = scores
    masks: list[Mask] = [] if mask is None else [checked_mask(mask, scores)]
    if is_causal:
        masks.append(Causal())
    if local_window_size is not None:
        masks.append(SlidingWindow(*checked_pair("local_window_size", local_window_size, 0)))
    if any(x is not None for x in lengths):
        names = "query_seq_lengths", "key_value_seq_lengths"
        masks.append(Lengths(*(checked_lengths(name, x, B) for name, x in zip(names, lengths, strict=True))))
    if segment_ids is not None:
        masks.append(checked_segments(segment_ids, B, T, S))
    return masks


def checked_mask(mask: Any, scores: tuple[int, ...]) -> Mask:
    """A mask whose arrays fit the scores; a bool array becomes one."""
    if not isinstance(mask, Mask):
        return as_mask(checked_scores("mask", mask, scores, np.bool_))
    B, N, T, S = scores
    index = np.zeros((B, 1, 1, 1), np.int32), np.zeros((1, N, 1, 1), np.int32)
    positions = np.zeros((1, 1, T, 1), np.int32), np.zeros((1, 1, 1, S), np.int32)
    shape = jax.eval_shape(lambda mask: jnp.asarray(mask.block(*index, *positions)), mask).shape
    if any(have not in (1, want) for have, want in zip(shape, scores, strict=True)):
        raise ValueError(
            f"mask has arrays for scores {list(shape)}: they must broadcast to [B, N, T, S] = {list(scores)}"
        )
    return mask


def has_function(masks: Iterable[Any]) -> bool:
    """Whether one of these masks, or a part of one, is a `FunctionMask`."""
    return any(
        isinstance(mask, FunctionMask) or (isinstance(mask, Mask) and has_function(vars(mask).values()))
        for mask in masks
    )


def checked_lengths(name: str, lengths: Any, batch: int) -> Array | None:
    """Integers [B], or None."""
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {lengths.shape} and dtype {lengths.dtype}: give one integer a batch row, [{batch}]"
        )
    return lengths


def checked_segments(segment_ids: Any, B: int, T: int, S: int) -> Segments:
    """Segment ids of queries and keys; one array counts for both."""
    pair = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
    if len(pair) != 2:
        raise ValueError(f"segment_ids has {len(pair)} parts: give (query_ids, key_ids), or one array for both")
    ids = [jnp.asarray(x) for x in pair]
    for x, length in zip(ids, (T, S), strict=True):
        if x.shape not in ((B, length), (1, length), (length,)) or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"segment_ids has shape {x.shape} and dtype {x.dtype}: give integers [B, time] = [{B}, {length}]"
            )
    return Segments(*ids)


# Dropout and numbers


def checked_dropout(dropout_rate: Any, dropout_key: Any) -> tuple[float, Array | None]:
    """The rate, and the key's bits if the rate isn't 0."""
    dropout_rate = checked_number("dropout_rate", dropout_rate)
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate={dropout_rate} must be at least 0 and less than 1")
    if dropout_rate and dropout_key is None:
        raise ValueError(f"dropout_rate={dropout_rate} needs dropout_key, for instance jax.random.key(0)")
    return dropout_rate, checked_bits(dropout_key) if dropout_rate else None


def checked_bits(dropout_key: Any) -> Array:
    """Two uint32 drawn from a key of jax.random."""
    try:
        return jax.random.bits(dropout_key, (2,), np.uint32)
    except (TypeError, ValueError):
        message = f"dropout_key={dropout_key!r} is no key: give one of jax.random, for instance jax.random.key(0)"
        raise ValueError(message) from None


def checked_number(name: str, value: Any) -> float:
    """A number known while tracing."""
    try:
        return float(value)
    except (TypeError, jax.errors.ConcretizationTypeError):
        raise ValueError(f"{name}={value} must be a number that is known while tracing, no traced array") from None


KINDS = {0: "a non-negative", 1: "a positive"}


def checked_pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """A pair of ints >= ``least``; one int counts for both."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(x, int | np.integer) and x >= least for x in pair):
        raise ValueError(f"{name}={value!r} must be {KINDS[least]} int, or two")
    return int(pair[0]), int(pair[1])
