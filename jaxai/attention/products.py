"""The three matrix products of a block, each the transpose of the others, in the layouts that are fast on a CPU.

With queries x [t, h], keys y [h, s] and weights w [t, s] every product of two gives the third. XLA's CPU backend runs
x y, w y^T and x^T w at the rate of a large product, but w^T x, which is what JAX makes of the transpose of x y by
itself, at two fifths of it (512x512 blocks of 8 heads of 64: 100 against 250 GFLOP/s).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxai.typing import Array

FACTORS = {"ts": ("th", "hs"), "th": ("ts", "hs"), "hs": ("th", "ts")}
"""The axes of the two factors of each product, by the axes of the result."""

contract_p = Primitive("contract")


def contract(result: str, x: Array, y: Array, precision: lax.PrecisionLike, inputs: Any) -> Array:
    """The product that has the axes ``result``, of the factors that FACTORS names; all leading axes are equal.

    Factors and result have one dtype, at least float32. ``inputs`` is the dtype that the factors' numbers came in: a
    GPU's product takes them rounded to it and sums in the factors' dtype.
    """
    return contract_p.bind(x, y, result=result, precision=precision, inputs=np.dtype(inputs))


def run(x: Array, y: Array, *, result: str, precision: lax.PrecisionLike, inputs: np.dtype) -> Array:
    """The product by lax, x^T w with a transposed copy of x, the small factor."""
    lead, first, second = tuple(range(x.ndim - 2)), x.ndim - 2, x.ndim - 1
    dtype = x.dtype
    x, y = x.astype(inputs), y.astype(inputs)
    if result == "hs":
        x = lax.transpose(x, (*lead, second, first))
    contracted = (second,), (second if result == "th" else first,)
    return lax.dot_general(x, y, (contracted, (lead, lead)), precision=precision, preferred_element_type=dtype)


def run_wide(x: Array, y: Array, *, result: str, precision: lax.PrecisionLike, inputs: np.dtype) -> Array:
    """The same on a CPU, where a product of small floats is one of float32 with conversions around it."""
    return run(x, y, result=result, precision=precision, inputs=x.dtype)


def abstract(x: Any, y: Any, *, result: str, precision: Any, inputs: Any) -> Any:
    sizes = dict(zip("".join(FACTORS[result]), (*x.shape[-2:], *y.shape[-2:]), strict=True))
    return jax.core.ShapedArray((*x.shape[:-2], *(sizes[axis] for axis in result)), x.dtype)


def transpose_factor(place: int, cotangent: Any, other: Any, result: str, **params: Any) -> Any:
    wanted = FACTORS[result][place]
    have = {FACTORS[result][1 - place]: other, result: cotangent}
    x, y = (have[axes] for axes in FACTORS[wanted])
    return contract_p.bind(x, y, result=wanted, **params)


def batch(factors: Sequence[Array], axes: Sequence[int | None], **params: Any) -> tuple[Array, int]:
    size = next(x.shape[axis] for x, axis in zip(factors, axes, strict=True) if axis is not None)
    x, y = (
        jnp.broadcast_to(x[None], (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(factors, axes, strict=True)
    )
    return contract_p.bind(x, y, **params), 0


contract_p.def_impl(lambda *args, **params: jax.jit(functools.partial(run, **params))(*args))
contract_p.def_abstract_eval(abstract)
ad.defbilinear(
    contract_p,
    lambda cotangent, x, y, **params: transpose_factor(0, cotangent, y, **params),
    lambda cotangent, x, y, **params: transpose_factor(1, cotangent, x, **params),
)
batching.primitive_batchers[contract_p] = batch
mlir.register_lowering(contract_p, mlir.lower_fun(run, multiple_results=False))
mlir.register_lowering(contract_p, mlir.lower_fun(run_wide, multiple_results=False), platform="cpu")
