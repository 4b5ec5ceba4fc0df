"""Gradient penalties on the discriminator."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from jaxai.typing import Images


def logits_and_squared_gradients(
    discriminate: Callable[[Images], Float[Array, " B"]], images: Images
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """D(x) and |grad_x D(x)|^2 for every image, summed over its pixels; one forward and one backward pass.

    On real images gamma/2 of its mean is the penalty R1, on generated ones R2 (Mescheder et al. 2018, arXiv 1801.04406;
    both together: Roth et al. 2017, R3GAN arXiv 2501.05441). D must treat every image by itself.
    """

    def total(images: Images) -> tuple[Array, Array]:
        logits = discriminate(images)
        return logits.sum(), logits

    gradients, logits = jax.grad(total, has_aux=True)(images)
    return logits, (gradients**2).sum((1, 2, 3))
