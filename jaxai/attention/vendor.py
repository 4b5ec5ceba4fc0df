"""Attention by other libraries, with first derivatives only: jax.nn, cuDNN through jax.nn, and tokamax."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import dot_product_attention as jax_nn_attention  # bound at import: users may put ours in its place

from jaxai.attention._primitives import is_zero, lowering, primitive, register, replace, shaped
from jaxai.attention.masks import Lengths, SlidingWindow, conjuncts, is_causal
from jaxai.attention.reference import Call
from jaxai.typing import Array


def xla(call: Call) -> tuple[Array, Array]:
    """``jax.nn.dot_product_attention(implementation="xla")``."""
    return by_jax_nn("xla", call)


def cudnn(call: Call) -> tuple[Array, Array]:
    """``jax.nn.dot_product_attention(implementation="cudnn")``: cuDNN forward and backward."""
    return by_jax_nn("cudnn", call)


def by_jax_nn(name: Literal["xla", "cudnn"], call: Call) -> tuple[Array, Array]:
    """``jax.nn.dot_product_attention`` by one of its implementations."""
    refuse(name, call, {"precision": call.precision, "logits_soft_cap": call.soft_cap})
    try:
        out, lse = jax_nn_attention(  # pyright: ignore[reportCallIssue]
            *(call.query, call.key, call.value, call.bias),
            scale=call.scale,
            implementation=name,
            return_residual=True,
            **mask_arguments(call),
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise NotImplementedError(
            f"implementation={name!r} refuses the call ({error}): use implementation=None"
        ) from None
    return out, lse.astype(call.dtype)


def tokamax(call: Call) -> tuple[Array, Array]:
    """``tokamax.dot_product_attention``; it has no log-sum-exp, which is NaN here."""
    try:
        import tokamax  # optional, slow to import  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise NotImplementedError("implementation='tokamax' needs the package: pip install 'jaxai[bench]'") from None
    refuse("tokamax", call, {})
    out = tokamax.dot_product_attention(
        *(call.query, call.key, call.value, call.bias),
        scale=call.scale,
        logits_soft_cap=call.soft_cap,
        precision=call.precision,
        **mask_arguments(call),
    )
    return out, jnp.full(call.query.shape[:-1], jnp.nan, call.dtype)


def refuse(name: str, call: Call, more: dict[str, Any]) -> None:
    """Raise NotImplementedError for options that a library's function has no argument for."""
    options = {"score_mod": call.score_mod, "sinks": call.sinks, "dropout_rate": call.dropout_rate or None, **more}
    for option, value in options.items():
        if value is not None:
            raise NotImplementedError(f"implementation={name!r} has no {option}: use implementation=None")


def mask_arguments(call: Call) -> dict[str, Any]:
    """The mask as arguments of jax.nn and tokamax; masks without an argument of their own become an array."""
    B, T, S, N, _ = call.sizes
    arguments: dict[str, Any] = {}
    rest = []
    for part in conjuncts(call.mask):
        if is_causal(part):
            arguments["is_causal"] = True
        elif (
            isinstance(part, SlidingWindow)
            and part.left is not None
            and part.right is not None
            and "local_window_size" not in arguments
        ):
            arguments["local_window_size"] = part.left, part.right
        elif isinstance(part, Lengths) and not arguments.keys() & {"query_seq_lengths", "key_value_seq_lengths"}:
            given = {"query_seq_lengths": part.query, "key_value_seq_lengths": part.key}
            arguments |= {
                name: jnp.broadcast_to(jnp.asarray(x, np.int32), (B,)) for name, x in given.items() if x is not None
            }
        else:
            rest.append(part.materialize(T, S, B, N))
    if rest:
        arguments["mask"] = functools.reduce(jnp.logical_and, rest)
    return arguments


# First derivatives only, with an error for any other

first_order_p = primitive("vendor_tangent")
REASON = "implementation={!r} has first derivatives in reverse mode only: use implementation=None"


def first_order(kernel: Callable[[Call], tuple[Array, Array]], call: Call) -> tuple[Array, Array]:
    """A library's forward and backward pass; any other derivative raises NotImplementedError with the reason."""
    if call.factor is not None:  # these libraries take a number only
        call = dataclasses.replace(call, query=call.query * call.factor.astype(call.query.dtype), factor=None)
    leaves, treedef = jax.tree.flatten(call)
    reason = REASON.format(kernel.__name__)

    def run(*arrays):
        return kernel(jax.tree.unflatten(treedef, arrays))

    @jax.custom_jvp
    def forward(*arrays):
        return run(*arrays)

    @forward.defjvp
    def _(arrays, tangents):
        floats = tuple(n for n, x in enumerate(arrays) if jnp.issubdtype(jnp.result_type(x), jnp.inexact))
        duals = (tangents[n] for n in floats)
        return forward(*arrays), tuple(first_order_p.bind(*arrays, *duals, run=run, floats=floats, reason=reason))

    return forward(*leaves)


def first_order_transpose(cotangents, *args, run, floats, reason):
    """Transpose in the linear arguments; its result can't be differentiated again."""
    arrays = args[: len(args) - len(floats)]

    @jax.custom_jvp
    def backward(arrays, cotangents):
        gradients = jax.vjp(lambda *some: run(*replace(arrays, floats, some)), *(arrays[n] for n in floats))[1]
        return gradients(cotangents)

    @backward.defjvp
    def _(primals, tangents):
        raise NotImplementedError(reason)

    results = jax.eval_shape(run, *arrays)
    given = tuple(jnp.zeros(x.shape, x.dtype) if is_zero(ct) else ct for ct, x in zip(cotangents, results, strict=True))
    return [None] * len(arrays) + list(backward(arrays, given))


def first_order_batch(args, axes, *, run, floats, reason):
    """Batching rule."""
    count = len(args) - len(floats)
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    batched = [axes[n] is not None for n in range(count)]
    for n, axis in zip(floats, axes[count:], strict=True):
        batched[n] |= axis is not None
    wanted = [*batched, *(batched[n] for n in floats)]
    moved = (
        jnp.moveaxis(x, axis, 0) if axis is not None else jnp.broadcast_to(x, (size, *x.shape)) if want else x
        for x, axis, want in zip(args, axes, wanted, strict=True)
    )
    mapped = jax.vmap(run, in_axes=[0 if b else None for b in batched])
    return first_order_p.bind(*moved, run=mapped, floats=floats, reason=reason), [0, 0]


def not_first_order(*args, reason, **params):
    """Raise NotImplementedError: there is no further derivative."""
    raise NotImplementedError(reason)


def first_order_avals(*args, run, floats, reason):
    """Shapes and dtypes of the results."""
    results = jax.eval_shape(run, *args[: len(args) - len(floats)])
    return [shaped(x.shape, x.dtype) for x in results]


register(
    first_order_p,
    avals=first_order_avals,
    lowerings={None: lowering(not_first_order)},
    evaluate=not_first_order,
    jvp=lambda primals, tangents, **params: not_first_order(**params),
    transpose=first_order_transpose,
    batch=first_order_batch,
)
