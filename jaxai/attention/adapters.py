"""This attention behind the interfaces of other libraries: PyTorch's `flex_attention` and Flax's `attention_fn`.

`flex_attention` and `create_block_mask` take the arguments of PyTorch 2.5's `torch.nn.attention.flex_attention`, in its
layout [B, heads, time, size], so that a port keeps its calls, score functions and mask functions. Arguments of later
versions, such as `return_aux`, are not supported. Score functions get blocks of scores [B, N, t, s] and int32 indices
of rank 4 where PyTorch passes scalars, so elementwise arithmetic and indexing such as ``table[h, q_idx - kv_idx]`` work
unchanged; captured arrays get gradients.

`attention_fn` is for the attention layers of Flax, both Linen's and NNX's, neither of which is imported here. It
differs from Flax's in three ways: softmax is always in at least float32; a query that sees no key gives 0 instead of
the mean of the values; and dropout draws for each batch row and head even with ``broadcast_dropout``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, DTypeLike, Num

from jaxai.attention.api import dot_product_attention
from jaxai.attention.masks import FunctionMask, Mask
from jaxai.attention.position import ScoreMod
from jaxai.typing import Array, Float


def flex_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S V"],
    score_mod: ScoreMod | None = None,
    block_mask: Mask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Mapping[str, int] | None = None,
) -> Float[Array, "B N T V"] | tuple[Float[Array, "B N T V"], Float[Array, "B N T"]]:
    """PyTorch's flex_attention (arXiv:2412.05496): softmax(score_mod(scale q k^T), masked by block_mask) v.

    query [B, N, T, H], key [B, K, S, H], value [B, K, S, V], the result [B, N, T, V] in their dtype; ``return_lse``
    adds the natural log-sum-exp of the scores [B, N, T], at least float32. ``score_mod(score, b, h, q_idx, kv_idx)``:
    see the module. ``block_mask``: any `Mask`. K < N needs ``enable_gqa``. ``kernel_options``: BLOCK_M and BLOCK_N, the
    queries and keys of a block. A query that sees no key gives 0, as in PyTorch. Raises ValueError for shapes that
    don't fit and other kernel options.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 4, 600, 8))
    >>> block_mask = create_block_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, None, None, 600, 600)
    >>> closer = lambda score, b, h, q_idx, kv_idx: score - 0.1 * (q_idx - kv_idx)
    >>> out, lse = flex_attention(query, key, value, closer, block_mask, return_lse=True)
    >>> out.shape, lse.shape
    ((1, 4, 600, 8), (1, 4, 600))
    """
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4:
        shapes = f"query, key and value have shapes {query.shape}, {key.shape}, {value.shape}"
        raise ValueError(f"{shapes}: give each as [B, heads, time, size]")
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise ValueError(f"query has {query.shape[1]} heads and key {key.shape[1]}: set enable_gqa=True for groups")
    if block_mask is not None and not isinstance(block_mask, Mask):
        raise ValueError(f"block_mask={block_mask!r} is no Mask: make one with create_block_mask")
    options = dict(kernel_options or {})
    if unknown := sorted(options.keys() - {"BLOCK_M", "BLOCK_N"}):
        raise ValueError(f"kernel_options has {unknown}: only BLOCK_M and BLOCK_N mean something here, drop the others")
    blocks = (options.get("BLOCK_M", 512), options.get("BLOCK_N", 512)) if options else None
    out, lse = dot_product_attention(
        query.swapaxes(1, 2),
        key.swapaxes(1, 2),
        value.swapaxes(1, 2),
        mask=block_mask,
        scale=scale,
        return_residual=True,
        score_mod=score_mod,
        block_size=blocks,
    )
    out, lse = out.swapaxes(1, 2), lse.swapaxes(1, 2)
    return (out, lse) if return_lse else out


def create_block_mask(
    mask_mod: Callable[..., Array | np.ndarray],
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: Any = None,
    BLOCK_SIZE: int | tuple[int, int] = 128,
) -> FunctionMask:
    """PyTorch's create_block_mask: ``mask_mod(b, h, q_idx, kv_idx)``, True where visible, as a mask.

    mask_mod gets int32 indices [B, 1, 1, 1], [1, H, 1, 1], [1, 1, t, 1] and [1, 1, 1, s] where PyTorch passes scalars
    and returns bools of rank 4. The sizes (None: any number of batches or heads) only serve to check this, without
    computing anything. Each call finds its empty blocks by itself, so ``device`` and ``BLOCK_SIZE`` have no effect.
    Raises ValueError for another result of mask_mod.

    >>> mask = create_block_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, None, None, 2, 3)
    >>> mask.materialize(2, 3)[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0]]
    """
    mask = FunctionMask(mask_mod)
    sizes = (1 if B is None else B, 1 if H is None else H, Q_LEN, KV_LEN)
    indices = [np.arange(n, dtype=np.int32).reshape(np.roll((n, 1, 1, 1), i)) for i, n in enumerate(sizes)]
    shape = jax.eval_shape(lambda *indices: jnp.asarray(mask.block(*indices)), *indices).shape
    if any(have not in (1, want) for have, want in zip(shape, sizes, strict=True)):
        raise ValueError(f"mask_mod gives {shape}: it must broadcast to [B, H, Q_LEN, KV_LEN] = {list(sizes)}")
    return mask


def attention_fn(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    bias: Float[Array, "..."] | None = None,
    mask: Mask | Bool[Array, "..."] | Num[Array, "..."] | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: lax.PrecisionLike = None,
    *,
    module: Any = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Any = None,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
    promote_dtype: Callable[..., tuple[Array, Array, Array]] | None = None,
    is_causal: bool = False,
) -> Float[Array, "*B T N V"]:
    """For ``flax.linen.MultiHeadDotProductAttention`` and ``flax.nnx.MultiHeadAttention(attention_fn=attention_fn)``.

    Flax's arguments: query [..., T, N, H], key [..., S, K, H], value [..., S, K, V] with any batch axes; bias and mask
    (0 or False: masked) broadcast to [..., N, T, S]; a `Mask` counts the batch axes as one. The result [..., T, N, V]
    has ``dtype``, by default the arguments' common one.

    Raises ValueError for shapes that don't fit, dropout without ``dropout_rng``, and options that need the weights or
    other products: ``module`` (sow_weights), ``einsum_dot_general``, the two ``..._einsum``.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 600, 4, 8))
    >>> attention_fn(query, key, value, mask=jnp.tril(jnp.ones((1, 1, 1, 600, 600)))).shape
    (2, 5, 600, 4, 8)
    """
    products = {"einsum_dot_general": einsum_dot_general, "qk_attn_weights_einsum": qk_attn_weights_einsum}
    refuse(module, products | {"attn_weights_value_einsum": attn_weights_value_einsum})
    if deterministic:
        dropout_rate = 0.0
    if dropout_rate and dropout_rng is None:
        raise ValueError(f"dropout_rate={dropout_rate} needs dropout_rng, or deterministic=True")
    batch = common_batch(query, key, value)
    if promote_dtype is not None:
        arrays = promote_dtype((query, key, value), dtype=dtype)
    else:
        arrays = [x.astype(jnp.result_type(query, key, value) if dtype is None else dtype) for x in (query, key, value)]
    query, key, value = (x.reshape(math.prod(batch), *x.shape[-3:]) for x in arrays)
    if mask is not None and not isinstance(mask, Mask):
        mask = flatten_batch("mask", mask.astype(bool), batch)
    out = dot_product_attention(
        query,
        key,
        value,
        None if bias is None else flatten_batch("bias", bias, batch),
        mask,
        is_causal=is_causal,
        dropout_rate=dropout_rate,
        dropout_key=dropout_rng,
        precision=precision,
    )
    return out.reshape(*batch, *out.shape[1:])


def refuse(module: Any, products: dict[str, Any]) -> None:
    """Raise ValueError for options of Flax that need the whole score matrix."""
    if module is not None:
        raise ValueError("module is set by sow_weights=True: the weights never exist as a whole; see attention_stats")
    for name, option in products.items():
        if option is not None:
            raise ValueError(f"{name}={option!r} can't be used, as products are computed block by block: leave it out")


def common_batch(query: Array, key: Array, value: Array) -> tuple[int, ...]:
    """The batch axes, which must be the same for all three."""
    batch = query.shape[:-3]
    if min(query.ndim, key.ndim, value.ndim) < 3 or not batch == key.shape[:-3] == value.shape[:-3]:
        shapes = f"query, key and value have shapes {query.shape}, {key.shape}, {value.shape}"
        raise ValueError(f"{shapes}: give [batch..., time, heads, size] with the same batch axes")
    return batch


def flatten_batch(name: str, x: Array, batch: tuple[int, ...]) -> Array:
    """An array that broadcasts to [batch..., N, T, S], with a single batch axis; that has size 1 if nothing varies."""
    rank = len(batch) + 3
    shape = (1,) * (rank - x.ndim) + x.shape
    if len(shape) > rank or any(have not in (1, want) for have, want in zip(shape, batch, strict=False)):
        raise ValueError(f"{name} has shape {x.shape}: it must broadcast to [batch..., N, T, S], batch {list(batch)}")
    scores = shape[-3:]
    if math.prod(shape[:-3]) == 1:
        return x.reshape(1, *scores)
    return jnp.broadcast_to(x.reshape(shape), (*batch, *scores)).reshape(-1, *scores)
