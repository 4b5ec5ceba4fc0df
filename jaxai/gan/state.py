"""State of adversarial training, and its initial value."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array

from jaxai.train.keys import Keys
from jaxai.typing import PyTree


@struct.dataclass
class GanState:
    """State of adversarial training: two networks, their optimisers, the generator's moving average.

    ``step`` is int32 []; ``generator``, ``discriminator`` and ``ema_params`` (the generator's average, or None) are
    float32 pytrees; ``key`` is a constant typed key, a step's randomness is ``fold_in(key, step)``; ``strength`` is the
    probability of adaptive augmentation, float32 [], or None.
    """

    step: Any
    generator: Any
    discriminator: Any
    ema_params: Any
    generator_opt: Any
    discriminator_opt: Any
    key: Any
    strength: Any = None


Optimizers = tuple[optax.GradientTransformation, optax.GradientTransformation]
"""The generator's and the discriminator's; their learning rates may differ (two time-scale rule, arXiv 1706.08500)."""


def init_gan_state(
    keys: Keys,
    init_generator: Callable[[Array], PyTree],
    init_discriminator: Callable[[Array], PyTree],
    *,
    txs: Optimizers,
    keep_ema: bool,
    adaptive: bool = False,
) -> GanState:
    """The state before the first step. Each init function, such as `init_fn` returns, maps a key to parameters.

    ``ema_params`` is None without ``keep_ema``; ``strength`` is 0, or None without ``adaptive``.
    """
    key_generator, key_discriminator = jax.random.split(keys.parameters)
    generator, discriminator = init_generator(key_generator), init_discriminator(key_discriminator)
    return GanState(
        step=jnp.zeros((), "int32"),
        generator=generator,
        discriminator=discriminator,
        ema_params=jax.tree.map(jnp.copy, generator) if keep_ema else None,
        generator_opt=txs[0].init(generator),
        discriminator_opt=txs[1].init(discriminator),
        key=keys.steps,
        strength=jnp.zeros(()) if adaptive else None,
    )


def init_fn(network: nn.Module, *inputs: Array) -> Callable[[Array], PyTree]:
    """Return the function from a key to the network's initial parameters, for inputs of these shapes."""
    return lambda key: network.init(key, *inputs)["params"]


def init_fns(**networks: tuple[nn.Module, Array]) -> Callable[[Array], PyTree]:
    """Return the function from a key to the initial parameters of several (network, input) pairs, by name."""

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, len(networks))
        return {name: init_fn(*network)(key) for (name, network), key in zip(networks.items(), keys, strict=True)}

    return init
