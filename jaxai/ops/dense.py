"""The dense layer: one matrix product that is fast forward and backward on a CPU too."""

from jax import lax
from jaxtyping import Float

from jaxai.typing import Array


def dense(
    x: Float[Array, "*B I"], kernel: Float[Array, "_ O"], bias: Float[Array, " _"] | None = None
) -> Float[Array, "*B O"]:
    """`x kernel + bias`: x [..., I], kernel [I, O], bias [O], one dtype; the result [..., O] in it.

    On a CPU the product stays apart from what follows. Otherwise XLA puts all that the kernel's gradient is multiplied
    with, such as the sum over a residual network, into the loop that transposes it, and computes it for each kernel
    anew, against the order of memory: a small Transformer's training step took twice the time.

    Raises ValueError for shapes that don't fit.

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
