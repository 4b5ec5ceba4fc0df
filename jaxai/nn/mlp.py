"""The multilayer perceptron: a pure function over its layers' arrays, and the Linen module that holds them."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from flax import linen as nn
from jaxtyping import Float

from jaxai.typing import Array

Activation = Callable[[Array], Array]
Layer = tuple[Float[Array, "_ _"], Float[Array, " _"]]
"""Kernel [in, out] and bias [out]."""


def mlp(layers: Sequence[Layer], x: Float[Array, "*B I"], activation: Activation = nn.relu) -> Float[Array, "*B O"]:
    """Dense layers with an activation between them: ``h_0 = x``, ``h_l = act(h_{l-1} W_l + b_l)``, none after the last.

    Each layer is a kernel [in, out] and a bias [out]; the result has the promoted dtype of ``x`` and the layers.
    Source: Rumelhart, Hinton and Williams 1986, doi 10.1038/323533a0. Raises ValueError for no layers, or if the sizes
    of consecutive layers do not match.

    >>> from jax.numpy import ones
    >>> mlp([(ones((2, 3)), ones(3)), (-ones((3, 1)), ones(1))], ones((4, 2))).tolist()
    [[-8.0], [-8.0], [-8.0], [-8.0]]
    """
    if not layers:
        raise ValueError("layers: empty, give at least one pair of kernel and bias")
    for index, (kernel, bias) in enumerate(layers):
        if kernel.shape != (x.shape[-1], *bias.shape):
            raise ValueError(
                f"layers[{index}]: kernel {list(kernel.shape)}, bias {list(bias.shape)} after {x.shape[-1]} features; "
                "a kernel is [features before, features after], its bias [features after]"
            )
        x = activation(x) if index else x
        x = x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))
    return x


class MLP(nn.Module):
    """`mlp` with parameters ``kernel_0`` [in, hidden], ``bias_0`` [hidden], ...: one layer per hidden size, one output.

    Initialisation as in `flax.linen.Dense`: LeCun-normal kernels, zero biases, float32. Without hidden sizes it is one
    linear layer.
    """

    hidden: Sequence[int]
    out: int
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        sizes, layers = [x.shape[-1], *self.hidden, self.out], []
        for index, (before, after) in enumerate(pairwise(sizes)):
            kernel = self.param(f"kernel_{index}", nn.initializers.lecun_normal(), (before, after))
            layers.append((kernel, self.param(f"bias_{index}", nn.initializers.zeros_init(), (after,))))
        return mlp(layers, x, self.activation)
