"""Attention by cuDNN's kernels where a program is lowered for CUDA, with derivatives of every order by blocks.

Each of cuDNN's kernels is a second lowering of a primitive that is defined by blocks:

    fused_attend     (arrays) -> (out, lse)                                               cuDNN's forward pass
    fused_tangent    (arrays, out, lse, tangents) -> tangents of out and lse              no kernel, always by blocks
    fused_gradient   (arrays, out, lse, cotangent of out) -> cotangents of the arrays     cuDNN's backward pass

``fused_tangent`` is the derivative of ``fused_attend`` and linear in the tangents. Its transpose is ``fused_gradient``
if only out has a cotangent, as in a training step, and a sum over blocks otherwise. ``fused_tangent`` and
``fused_gradient`` have the derivatives of their definitions by blocks. So a gradient runs two kernels, and jvp and all
higher derivatives run block sums.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxai.attention import cudnn
from jaxai.attention._primitives import (
    abstract_value,
    aligned,
    avals_by_definition,
    batch_by_definition,
    differentiated,
    is_linear,
    is_zero,
    jvp_by_definition,
    loop_lowering,
    materialized,
    primitive,
    register,
    replace,
    zero_cotangent,
)
from jaxai.attention.blocks.attend import centred
from jaxai.attention.blocks.blockwise import BlockedCall, block_sizes, blockwise
from jaxai.attention.reference import Call, with_sinks
from jaxai.typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """One attention call and its derivatives as functions of its arrays, the leaves of a ``Call``.

    By blocks: ``attend(*arrays) -> (out, lse)``; ``tangent(active, arrays, out, lse, duals) -> (d out, d lse)`` for
    tangents of the arrays whose numbers are in ``active``; ``cotangents(active, arrays, out, lse, ct_out[, ct_lse])``,
    its transpose. By cuDNN: ``forward`` as ``attend``, ``backward`` as ``cotangents`` without ct_lse.
    """

    attend: Callable[..., Any]
    tangent: Callable[..., Any]
    cotangents: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    head_size: int

    def mapped(self, axes: Sequence[int | None]) -> "Maps":
        """The maps over a leading axis of the results and of those arrays whose axis is 0."""

        def transposed(function):  # an unmapped array gets the sum of its cotangents along the mapped axis
            def run(active, arrays, *others):
                one = functools.partial(function, active)
                rows = jax.vmap(one, in_axes=(list(axes), *[0] * len(others)))(list(arrays), *others)
                return [x if axes[n] == 0 else x.sum(0) for n, x in zip(active, rows, strict=True)]

            return run

        def tangent(active, arrays, out, lse, duals):
            over = list(axes), 0, 0, [axes[n] for n in active]
            return jax.vmap(functools.partial(self.tangent, active), in_axes=over)(list(arrays), out, lse, list(duals))

        return Maps(
            jax.vmap(self.attend, in_axes=axes),
            tangent,
            transposed(self.cotangents),
            jax.vmap(self.forward, in_axes=axes),
            transposed(self.backward),
            self.head_size,
        )


def maps_of(
    treedef: Any, sinks: int | None, kernel: cudnn.Kernel, head_size: int, sizes: tuple[int, int] | None
) -> Maps:
    """The maps of calls with this structure; leaves 0, 1, 2 are query, key, value, and leaf ``sinks`` the sinks."""

    def blocked(arrays: Sequence[Array]) -> BlockedCall:
        call = jax.tree.unflatten(treedef, arrays)
        return BlockedCall(call, *(sizes or block_sizes(call)))

    def attend(*arrays):
        return blockwise(jax.tree.unflatten(treedef, arrays), sizes)

    def sink_weights(arrays, lse):
        return jnp.exp(arrays[sinks].astype(lse.dtype)[None, None] - lse)

    def tangent(active, arrays, out, lse, duals):
        given = dict(zip(active, duals, strict=True))
        sink = given.pop(sinks, None)
        if given:
            dual_out, dual_lse = blocked(arrays).tangent(lse, given)
        else:
            dual_out, dual_lse = jnp.zeros_like(lse)[..., None], jnp.zeros_like(lse)
        if sink is not None:
            dual_lse = dual_lse + sink_weights(arrays, lse) * sink.astype(lse.dtype)[None, None]
        return centred(dual_out, dual_lse, out), dual_lse

    def cotangent_of_sinks(arrays, lse, ct_lse):
        return (sink_weights(arrays, lse) * ct_lse).sum((0, 1)).astype(arrays[sinks].dtype)

    def cotangents(active, arrays, out, lse, ct_out, ct_lse=None):
        through_out = (ct_out.astype(lse.dtype) * out).sum(-1)
        ct_lse = -through_out if ct_lse is None else ct_lse - through_out
        found: dict[int | None, Array] = {sinks: cotangent_of_sinks(arrays, lse, ct_lse)} if sinks in active else {}
        if others := [n for n in active if n != sinks]:
            found |= zip(others, blocked(arrays).cotangents(lse, others, ct_out, ct_lse), strict=True)
        return [found[n] for n in active]

    def forward(*arrays):
        call = jax.tree.unflatten(treedef, arrays)
        out, lse = cudnn.forward(kernel, call)
        out, lse = with_sinks(out, lse, call.sinks)
        return out.astype(call.query.dtype), lse

    def backward(active, arrays, out, lse, ct_out):
        call = jax.tree.unflatten(treedef, arrays)
        found: dict[int | None, Array] = dict(enumerate(cudnn.backward(kernel, call, out, lse, ct_out)))
        if sinks in active:
            found[sinks] = cotangent_of_sinks(arrays, lse, -(ct_out.astype(lse.dtype) * out).sum(-1))
        return [found[n] for n in active]

    return Maps(attend, tangent, cotangents, forward, backward, head_size)


def fused(call: Call, kernel: cudnn.Kernel, block_size: tuple[int, int] | None = None) -> tuple[Array, Array]:
    """Attention and its log-sum-exp, [B, T, N, V] and [B, T, N], by cuDNN's kernels on CUDA and by blocks elsewhere."""
    paths, treedef = jax.tree.flatten_with_path(call)
    sinks = next((place for place, (path, _) in enumerate(paths) if path[0].name == "sinks"), None)
    maps = maps_of(treedef, sinks, kernel, call.query.shape[-1], block_size)
    out, lse = attend_p.bind(*aligned([jnp.asarray(x) for _, x in paths]), maps=maps)
    return out, lse


# The primitives

attend_p, tangent_p, gradient_p = (primitive(f"fused_{name}") for name in ("attend", "tangent", "gradient"))


def run_attend(*arrays, maps):
    """Evaluate attention without its rows' statistics."""
    return maps.attend(*arrays)


def run_forward(*arrays, maps):
    """Evaluate attention with its rows' statistics."""
    return maps.forward(*arrays)


def attend_jvp(arrays, tangents, *, maps):
    """Forward derivative, by `fused_tangent`."""
    results = attend_p.bind(*arrays, maps=maps)
    active = tuple(differentiated(arrays, tangents))
    duals = [tangents[n] for n in active]
    return results, tangent_p.bind(*arrays, *results, *duals, maps=maps, active=active)


def attend_batch(arrays, axes, *, maps):
    """Batching rule."""
    arrays = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    axes = tuple(None if axis is None else 0 for axis in axes)
    return attend_p.bind(*arrays, maps=maps.mapped(axes)), [0, 0]


def run_tangent(*args, maps, active):
    """Evaluate the forward derivative."""
    count = len(args) - 2 - len(active)
    return maps.tangent(active, args[:count], *args[count : count + 2], args[count + 2 :])


def tangent_transpose(cotangents, *args, maps, active):
    """Transpose in the tangents: the gradient, by `fused_gradient`."""
    count = len(args) - 2 - len(active)
    unknown = [n for n in range(len(active)) if is_linear(args[count + 2 + n])]
    wanted = tuple(active[n] for n in unknown)
    (ct_out, ct_lse), known = cotangents, args[: count + 2]
    zeros = [is_zero(ct) for ct in cotangents]
    if all(zeros):
        found = [zero_cotangent(args[count + 2 + n]) for n in unknown]
    elif zeros[1]:
        by_blocks, by_cudnn = (flat_arguments(form, wanted) for form in (maps.cotangents, maps.backward))
        found = gradient_p.bind(*known, ct_out, by_blocks=by_blocks, by_cudnn=by_cudnn, head_size=maps.head_size)
    else:
        ct_out = jnp.zeros_like(known[-2]) if zeros[0] else ct_out
        found = maps.cotangents(wanted, known[:count], *known[count:], ct_out, ct_lse)
    return [None] * (count + 2) + replace([None] * len(active), unknown, found)


def flat_arguments(function, active):
    """A gradient as a function of the arrays, out, lse and the cotangent of out, as positional arguments."""
    return lambda *args: function(active, args[:-3], *args[-3:])


def run_by_blocks(*args, by_blocks, by_cudnn, head_size):
    """Evaluate the gradient by block sums."""
    return by_blocks(*args)


def run_by_cudnn(*args, by_blocks, by_cudnn, head_size):
    """Evaluate the gradient by cuDNN."""
    return by_cudnn(*args)


def gradient_transpose(cotangents, *args, by_blocks, by_cudnn, head_size):
    """Transpose in the cotangent of the output."""
    *known, ct_out = args  # the cotangent of out is the linear operand
    given, aval = [materialized(x) for x in cotangents], abstract_value(ct_out)
    zeros, *_ = aligned([jnp.zeros(aval.shape, aval.dtype), *known])
    pullback = jax.vjp(lambda ct_out: by_blocks(*known, ct_out), zeros)[1]
    return [None] * len(known) + list(pullback(given))


def gradient_batch(args, axes, *, by_blocks, by_cudnn, head_size):
    """Batching rule."""
    by_blocks, by_cudnn = (jax.vmap(form, in_axes=axes) for form in (by_blocks, by_cudnn))
    results = gradient_p.bind(*args, by_blocks=by_blocks, by_cudnn=by_cudnn, head_size=head_size)
    return results, [0] * len(results)


def on_cuda(by_cudnn, by_blocks, head_size):
    """The lowering for CUDA: by cuDNN if the device has its kernels for heads of this size, otherwise by blocks."""
    vendor, blocks = loop_lowering(by_cudnn), loop_lowering(by_blocks)

    def lower(context, *args, **params):
        runs = cudnn.runs(context, head_size(params))
        return (vendor if runs else blocks)(context, *args, **params)

    return lower


register(
    attend_p,
    avals=avals_by_definition(run_attend),
    lowerings={
        None: loop_lowering(run_attend),
        "cuda": on_cuda(run_forward, run_attend, lambda params: params["maps"].head_size),
    },
    jvp=attend_jvp,
    batch=attend_batch,
)
register(
    tangent_p,
    avals=avals_by_definition(run_tangent),
    lowerings={None: loop_lowering(run_tangent)},
    jvp=jvp_by_definition(run_tangent),
    transpose=tangent_transpose,
    batch=batch_by_definition(run_tangent),
)
register(
    gradient_p,
    avals=avals_by_definition(run_by_blocks),
    lowerings={
        None: loop_lowering(run_by_blocks),
        "cuda": on_cuda(run_by_cudnn, run_by_blocks, lambda params: params["head_size"]),
    },
    jvp=jvp_by_definition(run_by_blocks),
    transpose=gradient_transpose,
    batch=gradient_batch,
)
cudnn.needs_devices(attend_p)
cudnn.needs_devices(gradient_p)
