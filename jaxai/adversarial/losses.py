"""GAN losses from logits, one value per example.

Every loss is a pair of functions of (real_logits [B], fake_logits [B]); ``softplus(-t) = -log sigmoid(t)``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

Logits = Float[Array, " B"]


class Loss(NamedTuple):
    """What each network minimises.

    ``discriminator`` is a function of (real_logits [B], fake_logits [B]) -> losses [B]; so is ``generator`` of a
    ``relativistic`` loss, else it is one of the fake logits alone.
    """

    discriminator: Callable[[Logits, Logits], Logits]
    generator: Callable[..., Logits]
    relativistic: bool


def non_saturating_discriminator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """-log D(x) - log(1 - D(G(z))), D = sigmoid of the logit (Goodfellow et al. 2014, arXiv 1406.2661, equation 1)."""
    return jax.nn.softplus(-real_logits) + jax.nn.softplus(fake_logits)


def non_saturating_generator(fake_logits: Logits) -> Logits:
    """-log D(G(z)) (Goodfellow et al. 2014, arXiv 1406.2661, section 3)."""
    return jax.nn.softplus(-fake_logits)


def relativistic_discriminator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """softplus(-(D(x) - D(G(z)))): real should beat fake, pair by pair (arXiv 1807.00734; R3GAN, arXiv 2501.05441)."""
    return jax.nn.softplus(fake_logits - real_logits)


def relativistic_generator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """softplus(-(D(G(z)) - D(x))), non-saturating as R3GAN's released code has it (arXiv 2501.05441)."""
    return jax.nn.softplus(real_logits - fake_logits)


LOSSES = {
    "non_saturating": Loss(non_saturating_discriminator, non_saturating_generator, relativistic=False),
    "relativistic": Loss(relativistic_discriminator, relativistic_generator, relativistic=True),
}
