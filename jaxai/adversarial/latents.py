"""What to do with the latents of a trained generator: walk between them."""

from itertools import pairwise

import numpy as np
from jaxtyping import Float

Latent = Float[np.ndarray, " Z"]


def slerp(start: Latent, end: Latent, share: float) -> Latent:
    """Between two latents along a great circle, where Gaussian latents lie (White 2016, arXiv 1609.04468)."""
    cosine = np.dot(start, end) / (np.linalg.norm(start) * np.linalg.norm(end))
    angle = np.arccos(np.clip(cosine, -1, 1))
    return (np.sin((1 - share) * angle) * start + np.sin(share * angle) * end) / np.sin(angle)


def walk(ends: Float[np.ndarray, "n Z"], steps: int) -> Float[np.ndarray, "m Z"]:
    """From each latent to the next in so many steps by `slerp`, both ends included: float32 [(n - 1) steps, Z]."""
    shares = np.linspace(0, 1, steps)
    return np.stack([slerp(a, b, share) for a, b in pairwise(ends) for share in shares]).astype(np.float32)
