"""Attention by cuDNN's kernels where a program is lowered for CUDA, with derivatives of every order by blocks.

Each of cuDNN's kernels is another lowering of a map that is defined by blocks:

    fused_attend     (arrays) -> (out, lse)                            cuDNN's forward pass
    fused_tangent    (arrays, out, lse, tangents) -> their tangents    always by blocks
    fused_gradient   (arrays, out, lse, cotangent of out) -> cotangents of query, key, value, sinks    cuDNN's backward

``fused_tangent`` is the derivative of the first and linear in the tangents; its transpose is ``fused_gradient`` where
out alone has a cotangent, as in a training step, and blocks elsewhere. The derivatives of the last two are those of
their definitions. A gradient therefore runs two kernels; jvp and all higher derivatives run block sums.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxai.attention import cudnn
from jaxai.attention.attend import centred
from jaxai.attention.blocks import aligned, define, differentiated, lowered, replace, typed_like
from jaxai.attention.blockwise import Problem, block_sizes, blockwise
from jaxai.attention.reference import Call, with_sinks
from jaxai.typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """One attention call as functions of its arrays, the leaves of a ``Call``.

    By blocks: ``attend(*arrays) -> (out, lse)``; ``tangent(active, arrays, out, lse, duals) -> (d out, d lse)`` for
    tangents of the arrays whose numbers are in ``active``; ``cotangents(active, arrays, out, lse, ct_out[, ct_lse])``,
    its transpose. By cuDNN: ``forward`` as attend, ``backward`` as cotangents without ct_lse.
    """

    attend: Callable[..., Any]
    tangent: Callable[..., Any]
    cotangents: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    head_size: int

    def mapped(self, axes: Sequence[int | None]) -> "Maps":
        """The same over a leading axis of those arrays whose axis is 0, and of the results."""

        def transposed(function):  # an unmapped array gets the sum of its cotangents over the mapped axis
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
    """The maps of calls with this structure: leaves 0, 1, 2 are query, key and value, and ``sinks`` is that leaf."""

    def problem(arrays: Sequence[Array]) -> Problem:
        call = jax.tree.unflatten(treedef, arrays)
        return Problem(call, *(sizes or block_sizes(call)))

    def attend(*arrays):
        return blockwise(jax.tree.unflatten(treedef, arrays), sizes)

    def share(arrays, lse):  # of the sinks in the softmax
        return jnp.exp(arrays[sinks].astype(lse.dtype)[None, None] - lse)

    def tangent(active, arrays, out, lse, duals):
        given = dict(zip(active, duals, strict=True))
        sink = given.pop(sinks, None)
        if given:
            dual_out, dual_lse = problem(arrays).tangent(lse, given)
        else:
            dual_out, dual_lse = jnp.zeros_like(lse)[..., None], jnp.zeros_like(lse)
        if sink is not None:
            dual_lse = dual_lse + share(arrays, lse) * sink.astype(lse.dtype)[None, None]
        return centred(dual_out, dual_lse, out), dual_lse

    def of_sinks(arrays, lse, ct_lse):
        return (share(arrays, lse) * ct_lse).sum((0, 1)).astype(arrays[sinks].dtype)

    def cotangents(active, arrays, out, lse, ct_out, ct_lse=None):
        through_out = (ct_out.astype(lse.dtype) * out).sum(-1)
        ct_lse = -through_out if ct_lse is None else ct_lse - through_out
        found: dict[int | None, Array] = {sinks: of_sinks(arrays, lse, ct_lse)} if sinks in active else {}
        if others := [n for n in active if n != sinks]:
            found |= zip(others, problem(arrays).cotangents(lse, others, ct_out, ct_lse), strict=True)
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
            found[sinks] = of_sinks(arrays, lse, -(ct_out.astype(lse.dtype) * out).sum(-1))
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

attend_p, tangent_p, gradient_p = (Primitive(f"fused_{name}") for name in ("attend", "tangent", "gradient"))


def run_attend(*arrays, maps):
    return maps.attend(*arrays)


def run_forward(*arrays, maps):
    return maps.forward(*arrays)


def attend_jvp(arrays, tangents, *, maps):
    results = attend_p.bind(*arrays, maps=maps)
    active = tuple(differentiated(arrays, tangents))
    duals = [tangents[n] for n in active]
    return results, tangent_p.bind(*arrays, *results, *duals, maps=maps, active=active)


def attend_batch(arrays, axes, *, maps):
    arrays = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    axes = tuple(None if axis is None else 0 for axis in axes)
    return attend_p.bind(*arrays, maps=maps.mapped(axes)), [0, 0]


def run_tangent(*args, maps, active):
    count = len(args) - 2 - len(active)
    return maps.tangent(active, args[:count], *args[count : count + 2], args[count + 2 :])


def tangent_transpose(cotangents, *args, maps, active):
    count = len(args) - 2 - len(active)
    unknown = [n for n in range(len(active)) if ad.is_undefined_primal(args[count + 2 + n])]
    wanted = tuple(active[n] for n in unknown)
    (ct_out, ct_lse), known = cotangents, args[: count + 2]
    zeros = [type(ct) is ad.Zero for ct in cotangents]
    if all(zeros):
        found = [ad.Zero(args[count + 2 + n].aval) for n in unknown]
    elif zeros[1]:
        by_blocks, by_cudnn = (flat_arguments(form, wanted) for form in (maps.cotangents, maps.backward))
        found = gradient_p.bind(*known, ct_out, by_blocks=by_blocks, by_cudnn=by_cudnn, head_size=maps.head_size)
    else:
        ct_out = jnp.zeros_like(known[-2]) if zeros[0] else ct_out
        found = maps.cotangents(wanted, known[:count], *known[count:], ct_out, ct_lse)
    return [None] * (count + 2) + replace([None] * len(active), unknown, found)


def flat_arguments(function, active):
    """A form of the gradient, with the arrays, out, lse and the cotangent of out as positional arguments."""
    return lambda *args: function(active, args[:-3], *args[-3:])


def run_by_blocks(*args, by_blocks, by_cudnn, head_size):
    return by_blocks(*args)


def run_by_cudnn(*args, by_blocks, by_cudnn, head_size):
    return by_cudnn(*args)


def gradient_transpose(cotangents, *args, by_blocks, by_cudnn, head_size):
    *known, ct_out = args  # linear in the last
    given = [ad.instantiate_zeros(x) for x in cotangents]
    zeros, *_ = aligned([jnp.zeros(ct_out.aval.shape, ct_out.aval.dtype), *known])
    pullback = jax.vjp(lambda ct_out: by_blocks(*known, ct_out), zeros)[1]
    return [None] * len(known) + list(pullback(given))


def gradient_batch(args, axes, *, by_blocks, by_cudnn, head_size):
    by_blocks, by_cudnn = (jax.vmap(form, in_axes=axes) for form in (by_blocks, by_cudnn))
    results = gradient_p.bind(*args, by_blocks=by_blocks, by_cudnn=by_cudnn, head_size=head_size)
    return results, [0] * len(results)


def jvp_by_definition(run):
    """The jvp of a primitive as that of the function that defines it."""

    def rule(args, tangents, **params):
        active = differentiated(args, tangents)

        def of_active(*some):
            return list(run(*replace(args, active, some), **params))

        return jax.jvp(of_active, [args[n] for n in active], [tangents[n] for n in active])

    return rule


def vmap_by_definition(run):
    """The vmap of a primitive as that of the function that defines it."""

    def rule(args, axes, **params):
        results = jax.vmap(functools.partial(run, **params), in_axes=axes)(*args)
        return results, [0] * len(results)

    return rule


def avals_by_definition(run):
    """The abstract results of a primitive from the function that defines it."""

    def rule(*avals, **params):
        arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
        return typed_like(avals, jax.eval_shape(functools.partial(run, **params), *arguments))

    return rule


def on_cuda(by_cudnn, by_blocks, head_size):
    """The lowering for CUDA: by cuDNN where the device has its kernels."""
    vendor, blocks = lowered(by_cudnn), lowered(by_blocks)

    def lower(context, *args, **params):
        runs = cudnn.runs(context, head_size(params))
        return (vendor if runs else blocks)(context, *args, **params)

    return lower


for primitive, definition in ((attend_p, run_attend), (tangent_p, run_tangent), (gradient_p, run_by_blocks)):
    define(primitive, definition)
    primitive.def_abstract_eval(avals_by_definition(definition))

for primitive, on_gpu in (
    (attend_p, on_cuda(run_forward, run_attend, lambda params: params["maps"].head_size)),
    (gradient_p, on_cuda(run_by_cudnn, run_by_blocks, lambda params: params["head_size"])),
):
    mlir.register_lowering(primitive, on_gpu, platform="cuda")
    cudnn.needs_devices(primitive)

ad.primitive_jvps[attend_p] = attend_jvp
ad.primitive_jvps[tangent_p] = jvp_by_definition(run_tangent)
ad.primitive_jvps[gradient_p] = jvp_by_definition(run_by_blocks)
ad.primitive_transposes[tangent_p] = tangent_transpose
ad.primitive_transposes[gradient_p] = gradient_transpose
batching.primitive_batchers[attend_p] = attend_batch
batching.primitive_batchers[tangent_p] = vmap_by_definition(run_tangent)
batching.primitive_batchers[gradient_p] = gradient_batch
