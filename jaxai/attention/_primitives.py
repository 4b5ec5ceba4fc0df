"""JAX's extension interfaces, wrapped for defining primitives. Besides this module only `cudnn` uses them.

`primitive` makes one, `register` gives it its rules. Rules are written with the helpers below: the lowering of a
function of arrays; zero tangents and the linear operands of a transpose; abstract results; what changes inside
`jax.shard_map`, where operands vary over mesh axes; and the rules that follow from a primitive's definition.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray, Tracer
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun  # pyright: ignore[reportPrivateImportUsage]
from jax.interpreters import ad, batching, mlir

from jaxai.typing import Array

Rule = Callable[..., Any]


def primitive(name: str, multiple_results: bool = True) -> Primitive:
    """A primitive without rules; its ``bind`` gives a list of arrays, or one without ``multiple_results``."""
    new = Primitive(name)
    new.multiple_results = multiple_results
    return new


def register(
    primitive: Primitive,
    *,
    avals: Rule,
    lowerings: Mapping[str | None, Rule],
    evaluate: Rule | None = None,
    jvp: Rule | None = None,
    transpose: Rule | None = None,
    batch: Rule | None = None,
) -> None:
    """Give a primitive its rules.

    ``avals`` computes abstract results; ``lowerings`` are by platform, under None for those not named; ``evaluate``
    runs it outside of any trace, by default compiled; ``jvp``, ``transpose`` and ``batch`` are as JAX calls them.
    """
    primitive.def_impl(evaluate or evaluation(primitive))
    primitive.def_abstract_eval(avals)
    for platform, rule in lowerings.items():
        mlir.register_lowering(primitive, rule, platform=platform)
    if jvp:
        ad.primitive_jvps[primitive] = jvp
    if transpose:
        ad.primitive_transposes[primitive] = transpose
    if batch:
        batching.primitive_batchers[primitive] = batch


def evaluation(primitive: Primitive) -> Rule:
    """Evaluation by compiling the primitive for the platform at hand."""

    def evaluate(*args, **params):
        with jax.disable_jit(False):  # where jit is disabled, the primitive would otherwise call itself endlessly
            return jax.jit(functools.partial(primitive.bind, **params))(*args)

    return evaluate


# Lowerings


def lowering(run: Callable[..., Any], multiple_results: bool = True) -> Rule:
    """The lowering of a function of arrays."""
    return mlir.lower_fun(run, multiple_results=multiple_results)


def loop_lowering(run: Callable[..., list[Array]]) -> Rule:
    """The lowering of a loop, traced without the mesh axes that its operands vary over inside ``jax.shard_map``.

    A loop's carry would have to vary over the same axes everywhere; the primitive's abstract results name them instead.
    """
    rule = lowering(run)

    def lower(context, *args, **params):
        avals_in, avals_out = (
            [ShapedArray(x.shape, x.dtype) for x in avals] for avals in (context.avals_in, context.avals_out)
        )
        return rule(context.replace(avals_in=avals_in, avals_out=avals_out), *args, **params)

    return lower


# Tangents and cotangents


def is_zero(tangent: Any) -> bool:
    """Whether a tangent or cotangent is a symbolic zero."""
    return type(tangent) is ad.Zero


def zero_tangent(x: Any) -> Any:
    """The symbolic zero among the tangents of x."""
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def materialized(tangent: Any) -> Array:
    """A tangent or cotangent as an array, also where it is a symbolic zero."""
    return ad.instantiate_zeros(tangent)


def differentiated(args: Sequence[Any], tangents: Sequence[Any]) -> list[int]:
    """The numbers of the operands that have a tangent."""
    return [n for n, t in enumerate(tangents) if not is_zero(t) and jnp.issubdtype(args[n].dtype, jnp.inexact)]


def is_linear(x: Any) -> bool:
    """Whether x is an operand whose cotangent a transpose rule must compute; such an operand has no value."""
    return ad.is_undefined_primal(x)


def linear_operand(x: Array) -> Any:
    """An operand like x whose cotangent a transpose rule must compute."""
    return ad.UndefinedPrimal(jax.typeof(x))


def abstract_value(x: Any) -> Any:
    """Shape and dtype of an operand of a transpose rule, linear or not."""
    return x.aval if is_linear(x) else x


def zero_cotangent(x: Any) -> Any:
    """The symbolic zero among the cotangents of a linear operand."""
    return ad.Zero(x.aval)


# Abstract results, and arrays inside shard_map


def shaped(shape: Sequence[int], dtype: Any) -> Any:
    """An abstract array."""
    return ShapedArray(tuple(shape), dtype)


def varying_like(operands: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """Abstract results that vary over each mesh axis of shard_map that some operand varies over."""

    def zeros(*operands):
        zero = sum((x != x).any() & False for x in operands)
        return [jnp.full(x.shape, zero, x.dtype) for x in results]

    return jax.make_jaxpr(zeros)(*operands).out_avals


def aligned(operands: Sequence[Array]) -> list[Array]:
    """The operands, all varying over the same mesh axes inside shard_map, so that cotangents are summed correctly."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return list(operands)
    never = functools.reduce(jnp.logical_or, ((x != x).any() for x in operands)) & False
    return [lax.select(jnp.broadcast_to(never, x.shape), x, x) for x in operands]


def spread(blocks: Iterable[Array]) -> list[Array]:
    """Blocks that vary over all mesh axes inside shard_map, as loop carries must if a captured array varies."""
    never = functools.reduce(
        jnp.logical_or, ((i != i) for i in map(lax.axis_index, jax.sharding.get_abstract_mesh().manual_axes)), False
    )
    return list(blocks) if never is False else [lax.select(jnp.broadcast_to(never, x.shape), x, x) for x in blocks]


# Rules from the function that defines a primitive


def avals_by_definition(run: Callable[..., Any]) -> Rule:
    """Abstract results from the function that defines a primitive."""

    def rule(*avals, **params):
        arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
        return varying_like(avals, jax.eval_shape(functools.partial(run, **params), *arguments))

    return rule


def jvp_by_definition(run: Callable[..., Any]) -> Rule:
    """The jvp of the function that defines a primitive."""

    def rule(args, tangents, **params):
        active = differentiated(args, tangents)

        def of_active(*some):
            return list(run(*replace(args, active, some), **params))

        return jax.jvp(of_active, [args[n] for n in active], [tangents[n] for n in active])

    return rule


def batch_by_definition(run: Callable[..., Any]) -> Rule:
    """The vmap of the function that defines a primitive."""

    def rule(args, axes, **params):
        results = jax.vmap(functools.partial(run, **params), in_axes=axes)(*args)
        return results, [0] * len(results)

    return rule


def replace(values: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """A copy of ``values`` with the ``new`` ones at those places."""
    values = list(values)
    for place, value in zip(places, new, strict=True):
        values[place] = value
    return values


# Captured arrays


def lift_captured(f: Callable[..., Array], variants: list[bool], avals: list[Any]) -> tuple[Rule, list[Array]]:
    """``f(masked, *args)`` with the traced arrays that it captures as further arguments, and those arrays.

    ``variants`` are the values of masked that occur. A function that captures no tracer is returned unchanged, without
    arrays; otherwise its arguments must have the shapes and dtypes of ``avals``.
    """
    closed = {masked: jax.make_jaxpr(functools.partial(f, masked))(*avals) for masked in variants}
    captured = [x for masked in variants for x in closed[masked].consts]
    if not any(isinstance(x, Tracer) for x in captured):
        return f, []
    first = len(closed[variants[0]].consts)

    def run(masked, *args):
        args, consts = args[: len(avals)], args[len(avals) :]
        consts = consts[:first] if masked == variants[0] else consts[first:]
        return jaxpr_as_fun(ClosedJaxpr(closed[masked].jaxpr, consts))(*args)[0]

    return run, [jnp.asarray(x) for x in captured]
