"""Attention's output and derivatives as programs over random data, shared by the benchmarks of attention."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]
"""``f(q, k, v, segments)``; segments are an input so that they aren't constants to the compiler."""


class Data(NamedTuple):
    """Random q, k, v, weights of the sum and direction for q, k, v; segments [B, T], or the fourth input of attend."""

    qkv: tuple[jax.Array, ...]
    w: jax.Array
    direction: tuple[jax.Array, ...]
    segments: Any


def forward(attend: Attend, data: Data) -> jax.Array:
    """The output."""
    q, k, v = data.qkv
    return attend(q, k, v, data.segments)


def gradient(attend: Attend, data: Data) -> Any:
    """The sum and its gradient. Without the sum as an output, XLA could drop the product with v."""

    def weighted_sum(qkv: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.sum(forward(attend, data._replace(qkv=qkv)) * data.w, dtype=jnp.float32)

    return jax.value_and_grad(weighted_sum)(data.qkv)


def jvp(attend: Attend, data: Data) -> Any:
    """The output and its derivative along the direction."""
    return jax.jvp(lambda *qkv: forward(attend, data._replace(qkv=qkv)), data.qkv, data.direction)


def hvp(attend: Attend, data: Data) -> Any:
    """The Hessian-vector product along the direction, the only output, as in Hessian-free optimisation."""
    return jax.jvp(lambda *qkv: gradient(attend, data._replace(qkv=qkv)), data.qkv, data.direction)[1]


def penalty(attend: Attend, data: Data) -> Any:
    """The squared norm of the gradient, and its gradient."""

    def squared_norm(qkv: tuple[jax.Array, ...]) -> jax.Array:
        _, grads = gradient(attend, data._replace(qkv=qkv))
        return jnp.sum(jnp.stack([jnp.sum(grad**2) for grad in grads]))

    return jax.value_and_grad(squared_norm)(data.qkv)


KINDS = {"forward": forward, "gradient": gradient, "jvp": jvp, "hvp": hvp, "penalty": penalty}
