r"""The public attention function, and its choice of an implementation.

`dot_product_attention` computes scores = scale * query key^T, then, in this order, ``logits_soft_cap`` c as
c tanh(scores / c) (Gemma 2, arXiv:2408.00118), ``score_mod``, ``bias``, and masks; then softmax(scores) value. NaN or
infinity in a masked key or value does not spread (``xla`` and ``tokamax`` don't promise this). Its arguments:

* ``query``, ``key``, ``value``: N is a multiple of K (grouped queries, arXiv:2305.13245).
* ``scale``: a number or an array scalar.
* ``is_causal``: query i sees keys up to i, counted from the first key; ``Causal(S - T)`` counts from the last.
* ``segment_ids``: a query sees the keys of its own segment.
* ``score_mod``: a function of blocks of scores [B, N, t, s] and their int32 indices of rank 4. Arrays that it captures
  get gradients. Outside of ``jit`` a plain function is compiled anew at each call, since it may have changed; a
  ``jax.tree_util.Partial`` or a function of `jaxai.attention.position` is compiled once.
* ``sinks``: one more logit per head, without a value (arXiv:2309.17453).
* ``dropout_rate``: of the weights. Which are dropped depends on ``dropout_key`` and their positions, not on the blocks.
* ``precision``: of the products, as in `jax.lax.dot_general`. On a GPU float32 products are TF32 by default, with 10
  bits of mantissa: "highest" gives float32.
* ``return_residual``: the log-sum-exp is -inf where a query sees no key (``tokamax`` gives none).
* ``block_size``: the forward pass may take up to 8 blocks of queries at once.

Implementations: ``blockwise``; ``reference``, the whole score matrix by two einsums; the first-order ``xla``, ``cudnn``
and ``tokamax`` of other libraries. None takes cuDNN's forward and backward kernels on CUDA where they can express the
call (float16 or bfloat16; full, causal, causal within a window, lengths, sinks; heads of up to 128 features, on Hopper
256; from Ampere on) and blocks for such a call elsewhere; for other calls the dense form if there are few scores and
blocks if there are many. Each has derivatives of every order. cuDNN may spread a NaN in a masked key to nearby queries.

>>> import jax, jax.numpy as jnp
>>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 600, 4, 8))
>>> out, lse = dot_product_attention(query, key, value, is_causal=True, return_residual=True)
>>> out.shape, lse.shape
((1, 600, 4, 8), (1, 600, 4))

Grouped heads, and a mask from the algebra:

>>> from jaxai.attention import Causal, PrefixLM, Segments, SlidingWindow
>>> mask = Causal() & SlidingWindow(64, 0) | PrefixLM(16)
>>> dot_product_attention(query, key[:, :, :2], value[:, :, :2], mask=mask).shape
(1, 600, 4, 8)

A score function, with the gradient with respect to an array that it captures:

>>> def loss(slope):
...     distance = lambda score, b, n, q, k: score - slope * abs(q - k)
...     return dot_product_attention(query, key, value, score_mod=distance, logits_soft_cap=30.0).sum()
>>> jax.jit(jax.grad(loss))(0.1).shape, jax.jit(jax.hessian(loss))(0.1).shape
((), ())

Sinks, packed segments, dropout:

>>> ids = jnp.arange(600)[None] // 100
>>> more = dict(sinks=jnp.zeros(4), segment_ids=ids, dropout_rate=0.1, dropout_key=jax.random.key(1))
>>> dot_product_attention(query, key, value, block_size=256, **more).shape
(1, 600, 4, 8)
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.typing import ArrayLike

from jaxai.attention import cudnn, vendor
from jaxai.attention.arguments import checked, checked_pair
from jaxai.attention.blocks.blockwise import blockwise, dense
from jaxai.attention.fused import fused
from jaxai.attention.reference import Call, reference
from jaxai.typing import Array

Implementation = Literal["reference", "xla", "blockwise", "cudnn", "tokamax"]

DENSE_SCORES = 512 * 512
"""Up to this many scores per head the dense form is as fast as blocks on a CPU (measured: 2 cores, AVX-512)."""

GPU_DENSE_SCORES = 2**25
"""Up to this many scores of all batches and heads (128 MiB in float32) a GPU takes the dense form."""


def automatic(call: Call, block_size: tuple[int, int] | None) -> tuple[Array, Array]:
    """cuDNN's kernels (blocks if not on CUDA) for calls they can express, else dense for few scores, else blocks."""
    if kernel := cudnn.kernel_of(call):
        return fused(call, kernel, block_size)
    if block_size is None and has_few_scores(call):
        return dense(call)
    return blockwise(call, block_size)


def has_few_scores(call: Call) -> bool:
    """Whether the whole score matrix is small enough to be stored."""
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
    """Exact attention, softmax(scores) value, in O(T) memory and differentiable to any order (arXiv:1706.03762).

    scores = scale * query key^T, then soft cap, ``score_mod``, ``bias``, masks, in this order. Softmax is in at least
    float32; a query that sees no key gives 0. The module's docstring explains each argument, with examples.

    query, key, value: floats [B, T, N, H], [B, S, K, H], [B, S, K, V] of one dtype, or without B.
    bias, mask: floats and bools (True: visible) that broadcast to [B, N, T, S]; a mask may also be a ``Mask``.
    scale: 1 / sqrt(H) by default. query_seq_lengths, key_value_seq_lengths: integers [B]. sinks: floats [N].
    local_window_size: keys to the left and right. segment_ids: integers [B, T] and [B, S] as a tuple, or one array.
    score_mod: ``score_mod(score, b, n, q, k)`` on blocks of scores. block_size: queries and keys, one int or two.
    implementation: None, ``blockwise``, ``reference``, or first-order ``xla``, ``cudnn``, ``tokamax``.

    Returns [B, T, N, V] in the query's dtype; with ``return_residual`` also the log-sum-exp [B, T, N], >= float32.
    Raises ValueError for arguments that don't fit, NotImplementedError for what a named implementation can't do.
    """
    call, batched = checked(
        *(query, key, value, bias, mask),
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
    check_implementation(implementation, return_residual)
    blocks = None if block_size is None else checked_pair("block_size", block_size, 1)
    out, lse = run(call, implementation, blocks)
    if not batched:
        out, lse = out[0], lse[0]
    return (out, lse) if return_residual else out


def check_implementation(implementation: str | None, return_residual: bool) -> None:
    """Raise for an unknown implementation, or one without the log-sum-exp that is asked for."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is not known: use one of {list(IMPLEMENTATIONS)}")
    if return_residual and implementation == "tokamax":
        raise NotImplementedError("implementation='tokamax' gives no log-sum-exp: use implementation=None")


def reference_attention(query: ArrayLike, key: ArrayLike, value: ArrayLike, *args: Any, **kwargs: Any) -> Any:
    """``dot_product_attention`` by two einsums and a softmax over the whole score matrix: the oracle.

    The article's worked example, one query whose scores of two tokens are 1 and 0.5. The article prints weights of 0.7
    and 0.3; softmax gives exp(1) / (exp(1) + exp(0.5)) = 0.622 and 0.378:

    >>> import jax.numpy as jnp
    >>> query, key = jnp.ones((1, 1, 1)), jnp.array([1.0, 0.5]).reshape(2, 1, 1)
    >>> weights = reference_attention(query, key, value=jnp.eye(2)[:, None], scale=1.0)
    >>> [f"{weight:.3f}" for weight in weights[0, 0]]
    ['0.622', '0.378']
    """
    return dot_product_attention(query, key, value, *args, **kwargs, implementation="reference")


@functools.partial(jax.jit, static_argnames=("implementation", "block_size"))
def run(call: Call, implementation: str | None, block_size: tuple[int, int] | None) -> tuple[Array, Array]:
    """One implementation of a checked call, compiled even if the caller does not jit."""
    return IMPLEMENTATIONS[implementation](call, block_size)
