"""The three matrix products of a block, each the transpose of the others, in the layouts that are fast on a CPU.

With queries x [t, h], keys y [h, s] and weights w [t, s] the product of any two has the shape of the third. XLA's CPU
backend runs x y, w y^T and x^T w at the rate of a large product, but w^T x, JAX's own transpose of x y, at two fifths
of it (512x512 blocks of 8 heads of 64: 100 against 250 GFLOP/s).
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxai.attention._primitives import is_linear, is_zero, lowering, primitive, register, shaped
from jaxai.attention.reference import finite
from jaxai.typing import Array

FACTORS = {"ts": ("th", "hs"), "th": ("ts", "hs"), "hs": ("th", "ts")}
"""The axes of the two factors of each product, by the axes of the result."""

contract_p = primitive("contract", multiple_results=False)


def contract(result: str, x: Array, y: Array, precision: lax.PrecisionLike, inputs: Any, guarded: bool) -> Array:
    """The product with the axes ``result`` of the two factors that FACTORS names; their leading axes are equal.

    Factors and result have one dtype, at least float32. ``inputs`` is the dtype of the arrays that the factors were
    cut from: a GPU multiplies them in it and sums in the factors' dtype. Derivatives of a ``guarded`` product replace
    NaN and infinities in its factors by 0, since a cotangent of 0 times NaN is NaN.
    """
    return contract_p.bind(x, y, result=result, precision=precision, inputs=np.dtype(inputs), guarded=guarded)


# The primitive maps x1, y1, x2, y2, ... to x1 y1 + x2 y2 + ...: a product's derivative is such a sum.


def run(*factors: Array, result: str, precision: lax.PrecisionLike, inputs: np.dtype, guarded: bool) -> Array:
    """The sum of products by ``lax.dot_general``; scores, the large result, as one product of concatenated factors."""
    lead, first, second = tuple(range(factors[0].ndim - 2)), factors[0].ndim - 2, factors[0].ndim - 1
    dtype = factors[0].dtype
    pairs = list(zip(factors[::2], factors[1::2], strict=True))
    if result == "ts" and len(pairs) > 1:
        xs, ys = zip(*pairs, strict=True)
        pairs = [(lax.concatenate(xs, second), lax.concatenate(ys, first))]

    def product(x, y):
        x, y = x.astype(inputs), y.astype(inputs)
        if result == "hs":
            x = lax.transpose(x, (*lead, second, first))  # of the two factors, the smaller one
        contracted = (second,), (second if result == "th" else first,)
        return lax.dot_general(x, y, (contracted, (lead, lead)), precision=precision, preferred_element_type=dtype)

    return functools.reduce(operator.add, (product(x, y) for x, y in pairs))


def run_wide(*factors: Array, inputs: np.dtype, **params: Any) -> Array:
    """`run` on a CPU, in the factors' dtype: there a product of 16-bit floats is one of float32 between conversions."""
    return run(*factors, inputs=factors[0].dtype, **params)


def abstract(x: Any, y: Any, *others: Any, result: str, **params: Any) -> Any:
    """Shape and dtype of the result."""
    sizes = dict(zip("".join(FACTORS[result]), (*x.shape[-2:], *y.shape[-2:]), strict=True))
    return shaped((*x.shape[:-2], *(sizes[axis] for axis in result)), x.dtype)


def jvp(factors: Sequence[Array], tangents: Sequence[Any], guarded: bool, **params: Any) -> tuple[Array, Any]:
    """Forward derivative: one product for each tangent."""
    terms = []
    for place, tangent in enumerate(tangents):
        if not is_zero(tangent):
            other = finite(factors[place ^ 1]) if guarded else factors[place ^ 1]
            terms += (other, tangent) if place % 2 else (tangent, other)
    return contract_p.bind(*factors, guarded=guarded, **params), contract_p.bind(*terms, guarded=False, **params)


def transpose(cotangent: Any, *factors: Any, result: str, **params: Any) -> list[Any]:
    """Transpose in the linear factor: products again."""
    cotangents: list[Any] = [None] * len(factors)
    for place, factor in enumerate(factors):
        if is_linear(factor):
            wanted, given = FACTORS[result][place % 2], FACTORS[result][1 - place % 2]
            have = {given: factors[place ^ 1], result: cotangent}
            x, y = (have[axes] for axes in FACTORS[wanted])
            cotangents[place] = contract_p.bind(x, y, result=wanted, **params)
    return cotangents


def batch(factors: Sequence[Array], axes: Sequence[int | None], **params: Any) -> tuple[Array, int]:
    """Batching rule."""
    size = next(x.shape[axis] for x, axis in zip(factors, axes, strict=True) if axis is not None)
    moved = (
        jnp.broadcast_to(x[None], (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(factors, axes, strict=True)
    )
    return contract_p.bind(*moved, **params), 0


register(
    contract_p,
    avals=abstract,
    lowerings={None: lowering(run, multiple_results=False), "cpu": lowering(run_wide, multiple_results=False)},
    evaluate=lambda *factors, **params: jax.jit(functools.partial(run, **params))(*factors),
    jvp=jvp,
    transpose=transpose,
    batch=batch,
)
