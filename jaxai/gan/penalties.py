"""Penalties on the discriminator: functions of (discriminate, real, fake, key) -> one value per example.

``discriminate`` maps a batch to its logits [B]. If a logit depends on other examples too (`minibatch_stddev`), the
gradient at an example is that of the sum of all logits. ``real`` and ``fake`` are batches [B, ...] of one shape and
float dtype; ``key`` is a typed key for the penalties that are random. Norms are over all axes of an example. The caller
takes the mean and multiplies it by a weight.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxai.gan.regularizers import instance_noise
from jaxai.typing import Samples

Values = Float[Array, " B"]
Discriminate = Callable[[Samples], Values]
Penalty = Callable[[Discriminate, Samples, Samples, Key[Array, ""]], Values]


def squared_gradients(discriminate: Discriminate, x: Samples) -> Values:
    """|grad_x D(x)|^2 of every example. Raises ValueError if ``x`` is None."""
    check_examples(examples=x)
    gradients = jax.grad(lambda x: discriminate(x).sum())(x)
    return (gradients**2).sum(range(1, x.ndim))


def r1(discriminate: Discriminate, real: Samples, fake: Samples, key: Key[Array, ""]) -> Values:
    """1/2 |grad D(x)|^2 at real examples (Mescheder et al. 2018, arXiv 1801.04406, equation 9)."""
    return squared_gradients(discriminate, real) / 2


def r2(discriminate: Discriminate, real: Samples, fake: Samples, key: Key[Array, ""]) -> Values:
    """1/2 |grad D(G(z))|^2 at generated examples (Mescheder et al. 2018, arXiv 1801.04406, equation 10)."""
    return squared_gradients(discriminate, fake) / 2


def r1_r2(discriminate: Discriminate, real: Samples, fake: Samples, key: Key[Array, ""]) -> Values:
    """`r1` + `r2` (R3GAN: Huang et al. 2024, arXiv 2501.05441)."""
    return sum_of_pairs(squared_gradients(discriminate, pairs(real, fake))) / 2


def approximate_r1_r2(
    discriminate: Discriminate, real: Samples, fake: Samples, key: Key[Array, ""], *, sigma: float = 0.01
) -> Values:
    """`r1_r2` by finite differences: (D(x + sigma u) - D(x))^2 / (2 sigma^2), u standard normal, at real and generated.

    Its expectation is half the squared gradient, up to O(sigma^2), and needs no second derivative. Source: Lin et al.
    2025, arXiv 2501.08316, who omit the division and use real examples only.
    """
    both = pairs(real, fake)
    moved = both + sigma * jax.random.normal(key, both.shape, both.dtype)
    return sum_of_pairs((discriminate(moved) - discriminate(both)) ** 2) / (2 * sigma**2)


def wgan_gp(discriminate: Discriminate, real: Samples, fake: Samples, key: Key[Array, ""]) -> Values:
    """(|grad D(y)| - 1)^2 at a random point y on the line between each real and generated example.

    Source: Gulrajani et al. 2017, arXiv 1704.00028, equation 3; their weight is 10.
    """
    check_examples(real=real, fake=fake)
    share = jax.random.uniform(key, (len(real), *(1,) * (real.ndim - 1)), real.dtype)
    return (norms(squared_gradients(discriminate, real + share * (fake - real))) - 1) ** 2


def dragan(discriminate: Discriminate, real: Samples, fake: Samples, key: Key[Array, ""]) -> Values:
    """(|grad D(x + d)| - 1)^2 around real examples, d uniform in [0, s / 2), s the batch's standard deviation.

    Source: Kodali et al. 2017, arXiv 1705.07215, with normal d; their weight is 10.
    """
    check_examples(real=real)
    noise = 0.5 * real.std() * jax.random.uniform(key, real.shape, real.dtype)
    return (norms(squared_gradients(discriminate, real + noise)) - 1) ** 2


def consistency(
    discriminate: Discriminate,
    real: Samples,
    fake: Samples,
    key: Key[Array, ""],
    *,
    augment: Callable[[Samples, Key[Array, ""]], Samples],
) -> Values:
    """(D(x) - D(T(x)))^2, T an augmentation of real examples (Zhang et al. 2019, arXiv 1910.12027).

    Their weight is 10.
    """
    check_examples(real=real)
    return (discriminate(real) - discriminate(augment(real, key))) ** 2


def norms(squares: Values) -> Values:
    """The square root, with derivative 0 at 0 instead of infinity."""
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def pairs(real: Samples, fake: Samples) -> Float[Array, "2*B *sample"]:
    """Interleave two batches [B, ...] to [2 B, ...], real and fake alternating: no communication when sharded.

    Raises ValueError if one is None, or for unequal shapes or dtypes.
    """
    check_examples(real=real, fake=fake)
    return jnp.stack([real, fake], 1).reshape(-1, *real.shape[1:])


def check_examples(**batches: Samples | None) -> None:
    """Raise ValueError if a batch is None, or unless all have the same shape and dtype."""
    for name, batch in batches.items():
        if batch is None:
            raise ValueError(f"{name}: None, but this loss or penalty needs them: pass a batch")
    kinds = {name: f"{batch.dtype}{list(batch.shape)}" for name, batch in batches.items() if batch is not None}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise ValueError(f"{told}: give batches of one shape and dtype, from a generator of the images' size")


def split_pairs(values: Values) -> tuple[Float[Array, " B//2"], Float[Array, " B//2"]]:
    """Split the values of a batch from `pairs` into those of the real and those of the generated examples."""
    both = values.reshape(-1, 2)
    return both[:, 0], both[:, 1]


def sum_of_pairs(values: Values) -> Float[Array, " B//2"]:
    """Add the values of each real example and its generated counterpart in a batch from `pairs`."""
    return values.reshape(-1, 2).sum(1)


PenaltyName = Literal["r1", "r2", "r1_r2", "approximate_r1_r2", "wgan_gp", "dragan"]
PENALTIES: dict[PenaltyName, Penalty] = {
    "r1": r1,
    "r2": r2,
    "r1_r2": r1_r2,
    "approximate_r1_r2": approximate_r1_r2,
    "wgan_gp": wgan_gp,
    "dragan": dragan,
}


def noise_penalties(sigma: float) -> dict[str, Penalty]:
    """Penalties on how the discriminator responds to input noise of standard deviation ``sigma``, by name."""
    noise = partial(instance_noise, sigma=sigma)
    return {
        "consistency": partial(consistency, augment=noise),
        "approximate_r1_r2": partial(approximate_r1_r2, sigma=sigma),
    }
