"""How much the examples of a batch differ, as a feature that a discriminator can see."""

import jax.numpy as jnp
from jaxtyping import Float

from jaxai.typing import Array

INTERLEAVED = 2  # real and generated examples come in turn: `jaxai.adversarial.penalties.pairs`


def minibatch_deviation(x: Float[Array, "B *space C"], group: int = 4) -> Float[Array, "B *space C+1"]:
    """x with one more channel: how much the examples of a group differ, the same number for each of the group.

    Standard deviation over the group of every feature, averaged over all features. A group are ``group`` examples two
    apart, since real and generated ones come in turn; where the batch has fewer, those there are. Source: Karras et al.
    2018, arXiv 1710.10196, section 3, with StyleGAN2's groups. ValueError for a batch that has no such groups.

    >>> x = minibatch_deviation(jnp.array([[1.0], [5.0], [3.0], [5.0]]), group=2)
    >>> [[round(value, 3) for value in row] for row in x.tolist()]
    [[1.0, 1.0], [5.0, 0.0], [3.0, 1.0], [5.0, 0.0]]
    """
    batch = len(x)
    if group < 1:
        raise ValueError(f"group={group}: give at least 1")
    group = min(group, max(1, batch // INTERLEAVED))
    if batch % (INTERLEAVED * group):
        raise ValueError(f"group={group} for a batch of {batch}: the batch must be a multiple of {INTERLEAVED * group}")
    groups = x.reshape(-1, group, INTERLEAVED, x[0].size)
    variance = ((groups - groups.mean(1, keepdims=True)) ** 2).mean(1)
    deviation = jnp.sqrt(variance + 1e-8).mean(-1)  # [groups, 2]; the summand keeps the derivative at 0 finite
    deviation = jnp.repeat(deviation[:, None], group, 1).reshape(batch, *(1,) * (x.ndim - 1))
    return jnp.concatenate([x, jnp.broadcast_to(deviation, (*x.shape[:-1], 1))], -1)
