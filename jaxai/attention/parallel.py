"""Attention over sequences that are split between devices, and over keys that are split between calls.

In `ring_attention` each device keeps its queries and fetches the keys and values of all others in turn. With a constant
c per query, here the log-sum-exp, out = sum exp(s - c) v / sum exp(s - c): results for parts of the keys only add up,
and so do their derivatives of every order. Key blocks that a device's queries don't see are not computed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxai.attention.api import dot_product_attention as dot_product_attention  # for the examples
from jaxai.attention.arguments import checked, checked_pair
from jaxai.attention.blocks.blockwise import BlockedCall
from jaxai.attention.masks import Mask
from jaxai.attention.reference import Call, with_sinks
from jaxai.typing import Array, Float

Partial = tuple[Float[Array, "*B T N V"], Float[Array, "*B T N"]]
"""A result and its log-sum-exp, as ``dot_product_attention(..., return_residual=True)`` returns them."""


def merge_partials(first: Partial, second: Partial) -> Partial:
    """Exact attention over two sets of keys from attention over each: ``(out, lse)`` [..., T, N, V] and [..., T, N].

    lse = log(exp(lse1) + exp(lse2)) and out = exp(lse1 - lse) out1 + exp(lse2 - lse) out2 (Rabe and Staats 2021,
    arXiv:2112.05682). Differentiable to any order; a set in which a query sees no key adds nothing.

    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 4))
    >>> attend = functools.partial(dot_product_attention, query, return_residual=True)
    >>> first, second = attend(key[:, :5], value[:, :5]), attend(key[:, 5:], value[:, 5:])
    >>> out, lse = jax.jit(merge_partials)(first, second)
    >>> bool(jnp.allclose(out, dot_product_attention(query, key, value), atol=1e-6))
    True
    """
    (out1, lse1), (out2, lse2) = first, second
    shift = lax.stop_gradient(jnp.maximum(lse1, lse2))
    shift = jnp.where(shift == -jnp.inf, 0, shift)
    weight1, weight2 = jnp.exp(lse1 - shift), jnp.exp(lse2 - shift)
    total = weight1 + weight2
    safe = jnp.where(total == 0, 1, total)
    out = ((weight1 / safe)[..., None] * out1 + (weight2 / safe)[..., None] * out2).astype(out1.dtype)
    return out, jnp.where(total == 0, -jnp.inf, shift + jnp.log(safe))


def ring_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    mask: Mask | None = None,
    *,
    axis_name: str,
    return_residual: bool = False,
    block_size: int | tuple[int, int] = 512,
    **options: Any,
) -> Any:
    """Attention in ``jax.shard_map``, with queries and keys split over a mesh axis in equal parts (arXiv:2310.01889).

    query [B, T, N, H], key and value [B, S, K, H] are this device's parts. Positions in masks and ``score_mod`` count
    through the whole sequence; arrays in a mask are parts along the queries or the keys. Memory is
    O((T + S) / devices), also for derivatives. ``options`` are those of `dot_product_attention` but ``bias`` and
    ``implementation``.

    Raises ValueError for arguments that don't fit, mask arrays over both queries and keys, and ambiguous mask arrays
    where each device holds a single key.

    >>> mesh = jax.make_mesh((jax.device_count(),), ("time",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> ring = functools.partial(ring_attention, axis_name="time", is_causal=True)
    >>> along = jax.sharding.PartitionSpec(None, "time")
    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 8 * jax.device_count(), 2, 4))
    >>> ring = jax.jit(jax.shard_map(ring, mesh=mesh, in_specs=along, out_specs=along))
    >>> out = ring(query, key, value)
    >>> bool(jnp.allclose(out, dot_product_attention(query, key, value, is_causal=True), atol=1e-6))
    True
    """
    if options.pop("bias", None) is not None:
        raise ValueError(
            "bias is over queries and keys, which ring_attention can't split: use a score_mod of positions"
        )
    blocks = checked_pair("block_size", block_size, 1)
    ring = Ring(axis_name, lax.axis_size(axis_name), lax.axis_index(axis_name))
    call, batched = checked(query, key, value, None, mask, **options)
    travels = [] if call.mask is None else along_keys(call.mask, call.sizes[2])
    part = functools.partial(ring_part, ring=ring, travels=travels, blocks=blocks)
    lses = (part(lax.stop_gradient(call), shift).attend()[1] for shift in range(ring.size))
    constant = lax.stop_gradient(functools.reduce(jnp.logaddexp, lses))
    weighed, total = 0, 0
    for shift in range(ring.size):  # remat: the backward pass fetches keys again instead of storing all
        more, count = jax.checkpoint(lambda call, constant, shift=shift: part(call, shift).sums(constant))(
            call, constant
        )
        weighed, total = weighed + more, total + count
    safe = jnp.where(total == 0, 1, total)
    shift = jnp.where(constant == -jnp.inf, 0, constant)
    out, lse = with_sinks(weighed / safe[..., None], jnp.where(total == 0, -jnp.inf, shift + jnp.log(safe)), call.sinks)
    out = out.astype(call.query.dtype)
    if not batched:
        out, lse = out[0], lse[0]
    return (out, lse) if return_residual else out


@dataclasses.dataclass(frozen=True)
class Ring:
    """The devices along a mesh axis: its name, their number, and this device's index."""

    axis_name: str
    size: int
    index: Array

    def fetch(self, x: Array, shift: int) -> Array:
        """x of the device ``shift`` places further on."""
        places = [(source, (source - shift) % self.size) for source in range(self.size)]
        return lax.ppermute(x, axis_name=self.axis_name, perm=places)


def ring_part(call: Call, shift: int, ring: Ring, travels: list[bool], blocks: tuple[int, int]) -> BlockedCall:
    """This device's queries against the keys of the device ``shift`` places further on.

    ``travels`` says which of the mask's arrays belong to the keys and are fetched with them.
    """
    leaves, treedef = jax.tree.flatten(call.mask)
    moved = [ring.fetch(x, shift) if travel else x for x, travel in zip(leaves, travels, strict=True)]
    T, S = call.sizes[1:3]
    return BlockedCall(
        dataclasses.replace(
            call,
            key=ring.fetch(call.key, shift),
            value=ring.fetch(call.value, shift),
            mask=jax.tree.unflatten(treedef, moved),
            offsets=(ring.index * T, (ring.index + shift) % ring.size * S),
        ),
        *blocks,
    )


def along_keys(mask: Mask, keys: int) -> list[bool]:
    """Whether each array leaf is a part along the keys, of which a device holds ``keys``."""
    # If a device holds one token, its part has size 1 like an axis that is broadcast. A copy of the mask with sizes of
    # at least 2 shows which axes its arrays can have.
    stretched = jax.tree.map(lambda x: np.broadcast_to(False, [max(size, 2) for size in x.shape]), mask)
    travels = []
    for x, have, could in zip(jax.tree.leaves(mask), mask.leaf_axes(), stretched.leaf_axes(), strict=True):
        if None not in have:
            raise ValueError(
                "mask has an array over queries and keys, which ring_attention can't split: use a function"
            )
        if None not in could and keys == 1:
            which = f"mask has an array of shape {x.shape} where each device holds one key"
            raise ValueError(f"{which}: its last axis may be a part of the keys or broadcast to them, use a function")
        travels.append(could[1] is not None and (could[0] is None or have[1] is not None))
    return travels
