"""The public attention function: it checks its arguments and picks an implementation."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxai.attention import cudnn, vendor
from jaxai.attention.blockwise import blockwise, dense
from jaxai.attention.fused import fused
from jaxai.attention.masks import Causal, FunctionMask, Lengths, Mask, Segments, SlidingWindow, as_mask
from jaxai.attention.reference import Call, reference
from jaxai.typing import Array

Implementation = Literal["reference", "xla", "blockwise", "cudnn", "tokamax"]

DENSE_SCORES = 512 * 512
"""Up to this many scores a head the dense form is as fast as blocks on a CPU (by hand: 2 cores, AVX-512)."""

GPU_DENSE_SCORES = 2**25
"""Up to this many scores of all batches and heads (128 MiB in float32) the dense form is taken on a GPU."""


def automatic(call: Call, block_size: tuple[int, int] | None) -> tuple[Array, Array]:
    """cuDNN's kernels on CUDA (blocks elsewhere) where they can express the call, else dense for few scores."""
    if kernel := cudnn.kernel_of(call):
        return fused(call, kernel, block_size)
    if block_size is None and has_few_scores(call):
        return dense(call)
    return blockwise(call, block_size)


def has_few_scores(call: Call) -> bool:
    """Whether the whole score matrix is small enough to be kept."""
    B, T, S, N, _ = call.sizes
    if jax.default_backend() == "gpu":
        return B * N * T * S <= GPU_DENSE_SCORES
    return T * S <= DENSE_SCORES


IMPLEMENTATIONS: dict[str | None, Callable[[Call, tuple[int, int] | None], tuple[Array, Array]]] = {
    None: automatic,
    "reference": lambda call, block_size: reference(call),
    "blockwise": blockwise,
    "xla": lambda call, block_size: vendor.first_order(vendor.xla, call),
    "cudnn": lambda call, block_size: vendor.first_order(vendor.cudnn, call),
    "tokamax": lambda call, block_size: vendor.first_order(vendor.tokamax, call),
}


def dot_product_attention(
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
    implementation: Implementation | None = None,
    return_residual: bool = False,
    score_mod: Callable[..., Array] | None = None,
    logits_soft_cap: float | None = None,
    sinks: Any = None,
    segment_ids: Any = None,
    dropout_rate: float = 0.0,
    dropout_key: Any = None,
    precision: jax.lax.PrecisionLike = None,
    block_size: int | tuple[int, int] | None = None,
) -> Any:
    r"""Exact attention, softmax(scores) value, in O(T) memory and differentiable to any order.

    scores = scale * query key^T, then, in this order: ``logits_soft_cap`` c as c tanh(scores / c) (Gemma 2,
    arXiv:2408.00118), ``score_mod``, ``bias``, masks. Softmax in at least float32; a query that sees nothing gives 0;
    NaN or infinity in a masked key or value stays there (``xla`` and ``tokamax`` promise neither).

    Args:
      query, key, value: floats [B, T, N, H], [B, S, K, H], [B, S, K, V], or without B; N a multiple of K (grouped
        queries, arXiv:2305.13245); one dtype.
      bias: floats that broadcast to [B, N, T, S]. mask: bools that do (True: visible), or a ``Mask``.
      scale: a number or an array scalar; 1 / sqrt(H) by default.
      is_causal: query i sees keys up to i, counted from the first key; ``Causal(S - T)`` counts from the last.
      query_seq_lengths, key_value_seq_lengths: integers [B]. local_window_size: keys to the left and right.
      segment_ids: integers [B, T] and [B, S] as a tuple, or one array; a query sees its own segment.
      score_mod: ``score_mod(score, b, n, q, k)`` on blocks [B, N, t, s] and their int32 indices of rank 4; arrays that
        it captures get gradients. Outside of ``jit`` a plain function is compiled anew at each call, since it may have
        changed; a ``jax.tree_util.Partial`` or a ready one is not.
      sinks: floats [N], one more logit a head without a value (arXiv:2309.17453).
      dropout_rate: of the weights, by ``dropout_key`` and position: the same for every block size.
      implementation: ``blockwise``, ``reference`` (dense), or other people's first-order ``xla``, ``cudnn`` and
        ``tokamax``; None takes cuDNN's forward and backward kernels on CUDA where they can express the call (float16 or
        bfloat16; full, causal, causal in a window, lengths, sinks; heads up to 128, on Hopper 256; from
        Ampere on), and blocks for it elsewhere; for other calls the dense form for few scores, blocks for many; each
        with all derivatives. cuDNN may spread a NaN in a hidden key to queries near it.
      precision: of the products, as in `jax.lax.dot_general`. On a GPU float32 products are TF32 by default, with 10
        bits of the mantissa: ask for "highest" where they must be float32.
      return_residual: also the log-sum-exp of the scores [B, T, N], at least float32, -inf where nothing is visible
        (``tokamax`` gives none).
      block_size: queries and keys of a block, one int or two; the forward pass takes up to 8 blocks of queries at once.

    Returns [B, T, N, V] in the query's dtype. Raises ValueError for arguments that don't fit together and
    NotImplementedError where a named implementation can't do what is asked.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 600, 4, 8))
    >>> out, lse = dot_product_attention(query, key, value, is_causal=True, return_residual=True)
    >>> out.shape, lse.shape
    ((1, 600, 4, 8), (1, 600, 4))

    Grouped heads, and a mask from the algebra:

    >>> from jaxai.attention import Causal, PrefixLM, Segments, SlidingWindow
    >>> mask = Causal() & SlidingWindow(64, 0) | PrefixLM(16)
    >>> dot_product_attention(query, key[:, :, :2], value[:, :, :2], mask=mask).shape
    (1, 600, 4, 8)

    A score function, with the gradient to what it captures:

    >>> def loss(slope):
    ...     distance = lambda score, b, n, q, k: score - slope * abs(q - k)
    ...     return dot_product_attention(query, key, value, score_mod=distance, logits_soft_cap=30.0).sum()
    >>> jax.grad(loss)(0.1).shape, jax.hessian(loss)(0.1).shape
    ((), ())

    Sinks, packed segments, dropout:

    >>> ids = jnp.arange(600)[None] // 100
    >>> more = dict(sinks=jnp.zeros(4), segment_ids=ids, dropout_rate=0.1, dropout_key=jax.random.key(1))
    >>> dot_product_attention(query, key, value, block_size=256, **more).shape
    (1, 600, 4, 8)
    """
    call, batched = checked(
        query,
        key,
        value,
        bias,
        mask,
        scale=scale,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        score_mod=score_mod,
        logits_soft_cap=logits_soft_cap,
        sinks=sinks,
        segment_ids=segment_ids,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        precision=precision,
    )
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is not known: use one of {list(IMPLEMENTATIONS)}")
    if return_residual and implementation == "tokamax":
        raise NotImplementedError("implementation='tokamax' gives no log-sum-exp: use implementation=None")
    blocks = None if block_size is None else checked_pair("block_size", block_size, 1)
    out, lse = run(call, implementation, blocks)
    if not batched:
        out, lse = out[0], lse[0]
    return (out, lse) if return_residual else out


def reference_attention(query: ArrayLike, key: ArrayLike, value: ArrayLike, *args: Any, **kwargs: Any) -> Any:
    """The same as ``dot_product_attention``, by two einsums and a softmax over the whole score matrix: the oracle.

    The article's worked example, one query whose scores of two tokens are 1 and 0.5. The article prints weights of 0.7
    and 0.3; softmax gives exp(1) / (exp(1) + exp(0.5)) = 0.622 and 0.378:

    >>> query, key = jnp.ones((1, 1, 1)), jnp.array([1.0, 0.5]).reshape(2, 1, 1)
    >>> weights = reference_attention(query, key, value=jnp.eye(2)[:, None], scale=1.0)
    >>> [f"{weight:.3f}" for weight in weights[0, 0]]
    ['0.622', '0.378']
    """
    return dot_product_attention(query, key, value, *args, **kwargs, implementation="reference")


@functools.partial(jax.jit, static_argnames=("implementation", "block_size"))
def run(call: Call, implementation: str | None, block_size: tuple[int, int] | None) -> tuple[Array, Array]:
    """One implementation of a checked call, compiled once also where the caller does not jit."""
    return IMPLEMENTATIONS[implementation](call, block_size)


# The checks


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
    """The call that the arguments make, and whether they had a batch axis."""
    query, key, value, batched = checked_arrays(query, key, value)
    B, T, N, H = query.shape
    S = key.shape[1]
    scores = B, N, T, S
    if bias is not None:
        bias = checked_scores("bias", bias, scores, jnp.floating)
    if scale is None:
        scale = 1 / math.sqrt(H)
    factor = None
    if not isinstance(scale, int | float | np.number):  # an array, which may be differentiated
        factor, scale = jnp.asarray(scale), 1.0
        if factor.shape:
            raise ValueError(f"scale has shape {factor.shape}: give one number; scale features in the query")
    masks: list[Mask] = [] if mask is None else [checked_mask(mask, scores)]
    if is_causal:
        masks.append(Causal())
    if local_window_size is not None:
        masks.append(SlidingWindow(*checked_pair("local_window_size", local_window_size, 0)))
    if query_seq_lengths is not None or key_value_seq_lengths is not None:
        masks.append(
            Lengths(
                checked_lengths("query_seq_lengths", query_seq_lengths, B),
                checked_lengths("key_value_seq_lengths", key_value_seq_lengths, B),
            )
        )
    if segment_ids is not None:
        masks.append(checked_segments(segment_ids, B, T, S))
    plain = score_mod is not None and jax.tree_util.all_leaves([score_mod])
    if score_mod is not None:
        if not callable(score_mod):
            raise ValueError(
                f"score_mod={score_mod!r} must be a function score_mod(score, b, n, q, k) of a block of scores"
            )
        if plain:  # a function; ready ones are pytrees with arrays inside
            score_mod = jax.tree_util.Partial(score_mod)
    if logits_soft_cap is not None:
        logits_soft_cap = checked_number("logits_soft_cap", logits_soft_cap)
        if not logits_soft_cap > 0:
            raise ValueError(f"logits_soft_cap={logits_soft_cap} must be positive, or None for no cap")
    if sinks is not None:
        sinks = jnp.asarray(sinks)
        if sinks.shape != (N,) or not jnp.issubdtype(sinks.dtype, jnp.floating):
            raise ValueError(
                f"sinks has shape {sinks.shape} and dtype {sinks.dtype}: give one float logit a head, [{N}]"
            )
    dropout_rate = checked_number("dropout_rate", dropout_rate)
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate={dropout_rate} must be at least 0 and less than 1")
    if dropout_rate and dropout_key is None:
        raise ValueError(f"dropout_rate={dropout_rate} needs dropout_key, for instance jax.random.key(0)")
    bits = checked_bits(dropout_key) if dropout_rate else None
    return Call(
        query,
        key,
        value,
        bias,
        functools.reduce(lambda x, y: x & y, masks) if masks else None,
        score_mod,
        sinks,
        bits,
        factor=factor,
        scale=float(scale),
        soft_cap=logits_soft_cap,
        dropout_rate=dropout_rate,
        precision=precision,
        unlike=object() if plain or has_function(masks) else None,
    ), batched


def checked_arrays(query: Any, key: Any, value: Any) -> tuple[Array, Array, Array, bool]:
    """The three arrays with a batch axis, and whether they had one."""
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


def checked_number(name: str, value: Any) -> float:
    """A number that is known while tracing."""
    try:
        return float(value)
    except (TypeError, jax.errors.ConcretizationTypeError):
        raise ValueError(f"{name}={value} must be a number that is known while tracing, no traced array") from None


def checked_bits(dropout_key: Any) -> Array:
    """Two uint32 from a key of jax.random."""
    try:
        return jax.random.bits(dropout_key, (2,), np.uint32)
    except (TypeError, ValueError):
        message = f"dropout_key={dropout_key!r} is no key: give one of jax.random, for instance jax.random.key(0)"
        raise ValueError(message) from None


KINDS = {0: "a non-negative", 1: "a positive"}


def checked_pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """Two ints, one for both."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(x, int | np.integer) and x >= least for x in pair):
        raise ValueError(f"{name}={value!r} must be {KINDS[least]} int, or two")
    return int(pair[0]), int(pair[1])


def checked_scores(name: str, x: Any, scores: tuple[int, ...], kind: Any) -> Array:
    """An array that broadcasts to the scores, with rank 4."""
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


def has_function(masks: Iterable[Any]) -> bool:
    """Whether a mask calls a function."""
    return any(
        isinstance(mask, FunctionMask) or (isinstance(mask, Mask) and has_function(vars(mask).values()))
        for mask in masks
    )


def checked_mask(mask: Any, scores: tuple[int, ...]) -> Mask:
    """A mask object whose arrays fit the scores; an array as one."""
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


def checked_lengths(name: str, lengths: Any, batch: int) -> Array | None:
    """Integers [B]."""
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"{name} has shape {lengths.shape} and dtype {lengths.dtype}: give one integer a batch row, [{batch}]"
        )
    return lengths


def checked_segments(segment_ids: Any, B: int, T: int, S: int) -> Segments:
    """Segment ids of queries and keys, one array for both where they are the same."""
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
