"""The dense layer: a matrix product, with a barrier that keeps its gradient fast on CPU."""

from jax import lax
from jaxtyping import Float

from jaxai.typing import Array


def dense(
    x: Float[Array, "*B I"], kernel: Float[Array, "_ O"], bias: Float[Array, " _"] | None = None
) -> Float[Array, "*B O"]:
    """`x kernel + bias`: x [..., I], kernel [I, O], bias [O] of one dtype, which is the result's, [..., O].

    On CPU a barrier separates the product from its consumers. Without it, XLA fuses the producer of the output's
    gradient, such as a residual network's sum, into the loop that transposes it for the kernel's gradient, and
    recomputes it for each kernel with strided access: a small Transformer's training step takes twice the time.

    Raises ValueError for incompatible shapes.

    >>> import jax.numpy as jnp
    >>> dense(jnp.ones((2, 3, 4)), jnp.ones((4, 5)), jnp.ones(5)).shape
    (2, 3, 5)
    """
    if kernel.shape[0] != x.shape[-1] or (bias is not None and bias.shape != kernel.shape[1:]):
        shapes = f"kernel {kernel.shape}, bias {None if bias is None else bias.shape} for x {x.shape}"
        raise ValueError(f"{shapes}: give kernel [{x.shape[-1]}, O] and bias [O]")
    y = x.reshape(-1, x.shape[-1]) @ kernel
    y = lax.platform_dependent(y, cpu=lax.optimization_barrier, default=lambda y: y)
    y = y.reshape(*x.shape[:-1], kernel.shape[1])
    return y if bias is None else y + bias.reshape((1,) * (x.ndim - 1) + (-1,))
