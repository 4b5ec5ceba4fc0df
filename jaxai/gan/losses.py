"""GAN losses on logits, one value per example.

Every loss is a pair of functions; ``softplus(-t) = -log sigmoid(t)``. x is a real example, G(z) a generated one, and
D(.) the discriminator's logit.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
from jaxtyping import Array, Float

Logits = Float[Array, " B"]


class Loss(NamedTuple):
    """The losses that discriminator and generator minimise.

    ``discriminator`` maps (real_logits [B], fake_logits [B]) to losses [B]; so does ``generator`` of a ``relativistic``
    loss, otherwise it maps the fake logits only. ``margin`` maps both logits to a value that is positive where the
    discriminator classifies a real example as real: the real logit minus the decision threshold, or minus the paired
    fake logit for losses of differences.
    """

    discriminator: Callable[[Logits, Logits], Logits]
    generator: Callable[..., Logits]
    margin: Callable[[Logits, Logits], Logits]
    relativistic: bool = False


def classifying_discriminator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """-log s(D(x)) - log(1 - s(D(G(z)))), s = sigmoid (Goodfellow et al. 2014, arXiv 1406.2661, equation 1)."""
    return jax.nn.softplus(-real_logits) + jax.nn.softplus(fake_logits)


def non_saturating_generator(fake_logits: Logits) -> Logits:
    """-log s(D(G(z))) (Goodfellow et al. 2014, arXiv 1406.2661, section 3)."""
    return jax.nn.softplus(-fake_logits)


def saturating_generator(fake_logits: Logits) -> Logits:
    """log(1 - s(D(G(z)))), the minimax game itself (Goodfellow et al. 2014, arXiv 1406.2661, equation 1).

    Its gradient vanishes where the discriminator confidently rejects the example.
    """
    return -jax.nn.softplus(fake_logits)


def least_squares_discriminator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """1/2 (D(x) - 1)^2 + 1/2 D(G(z))^2 (Mao et al. 2017, arXiv 1611.04076, equation 9)."""
    return 0.5 * (real_logits - 1) ** 2 + 0.5 * fake_logits**2


def least_squares_generator(fake_logits: Logits) -> Logits:
    """1/2 (D(G(z)) - 1)^2 (Mao et al. 2017, arXiv 1611.04076, equation 9)."""
    return 0.5 * (fake_logits - 1) ** 2


def hinge_discriminator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Lim and Ye 2017, arXiv 1705.02894)."""
    return jax.nn.relu(1 - real_logits) + jax.nn.relu(1 + fake_logits)


def wasserstein_discriminator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """D(G(z)) - D(x), for a discriminator kept Lipschitz (Arjovsky et al. 2017, arXiv 1701.07875, equation 2)."""
    return fake_logits - real_logits


def raising_generator(fake_logits: Logits) -> Logits:
    """-D(G(z)): the generator's hinge and Wasserstein loss (arXiv 1705.02894, arXiv 1701.07875)."""
    return -fake_logits


def relativistic_discriminator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """softplus(-(D(x) - D(G(z)))): rank real above fake, pairwise (arXiv 1807.00734; R3GAN, arXiv 2501.05441)."""
    return jax.nn.softplus(fake_logits - real_logits)


def relativistic_generator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """softplus(-(D(G(z)) - D(x))), non-saturating as in R3GAN's released code (arXiv 2501.05441)."""
    return jax.nn.softplus(real_logits - fake_logits)


def relativistic_average_discriminator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """-log s(D(x) - mean D(G(z))) - log(1 - s(D(G(z)) - mean D(x))), means over the batch.

    Source: Jolicoeur-Martineau 2018, arXiv 1807.00734 (RaSGAN).
    """
    return classifying_discriminator(real_logits - fake_logits.mean(), fake_logits - real_logits.mean())


def relativistic_average_generator(real_logits: Logits, fake_logits: Logits) -> Logits:
    """`relativistic_average_discriminator` with real and fake swapped (Jolicoeur-Martineau 2018, arXiv 1807.00734)."""
    return relativistic_average_discriminator(fake_logits, real_logits)


def above_0(real_logits: Logits, fake_logits: Logits) -> Logits:
    """Margin of real logits over 0, for losses on single logits."""
    return real_logits


def above_half(real_logits: Logits, fake_logits: Logits) -> Logits:
    """Margin of real logits over 0.5, the midpoint of the targets 1 and 0."""
    return real_logits - 0.5


def above_fake(real_logits: Logits, fake_logits: Logits) -> Logits:
    """Margin of real logits over those of the paired generated examples."""
    return real_logits - fake_logits


LossName = Literal[
    "saturating",
    "non_saturating",
    "least_squares",
    "hinge",
    "wasserstein",
    "relativistic",
    "relativistic_average",
]
LOSSES: dict[LossName, Loss] = {
    "saturating": Loss(classifying_discriminator, saturating_generator, above_0),
    "non_saturating": Loss(classifying_discriminator, non_saturating_generator, above_0),
    "least_squares": Loss(least_squares_discriminator, least_squares_generator, above_half),
    "hinge": Loss(hinge_discriminator, raising_generator, above_0),
    "wasserstein": Loss(wasserstein_discriminator, raising_generator, above_fake),
    "relativistic": Loss(relativistic_discriminator, relativistic_generator, above_fake, relativistic=True),
    "relativistic_average": Loss(
        relativistic_average_discriminator, relativistic_average_generator, above_fake, relativistic=True
    ),
}
