"""Mixtures of 2-D Gaussians for measuring a GAN's mode collapse: a ring of eight, a grid of 25."""

import dataclasses

import grain
import numpy as np
from jaxtyping import Float

from jaxai.data.pipeline import check_rows, endless, own_rows
from jaxai.data.random import integers, uniform
from jaxai.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Equally weighted isotropic Gaussians around ``centres`` float64 [modes, 2] with standard ``deviation``."""

    centres: Float[np.ndarray, "modes 2"]
    deviation: float

    def draw(self, count: int, *entropy: int) -> Float[np.ndarray, "{count} 2"]:
        """Draw ``count`` points, float32, from ``entropy`` (integers >= 0) alone, by the Box-Muller transform."""
        chosen = self.centres[integers(len(self.centres), (count,), *entropy, 0)]
        radius, angle = uniform((2, count), *entropy, 1)
        radius, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * angle
        offsets = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
        return (chosen + self.deviation * offsets).astype(np.float32)


ANGLES = 2 * np.pi * np.arange(8) / 8
MIXTURES = {
    "ring": Mixture(np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), 0.01),
    "grid": Mixture(np.stack(np.meshgrid(*[np.arange(-4.0, 5.0, 2.0)] * 2, indexing="ij"), -1).reshape(-1, 2), 0.05),
}
"""PacGAN's: 8 modes on the unit circle, 25 at even coordinates in -4 ... 4 (Lin et al. 2018, arXiv 1712.04086)."""


def point_batches(
    mixture: Mixture, count: int, batch_size: int, *, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """An endless iterator of ``points`` float32 [count, batch_size, 2]: fresh points for each of ``count`` networks.

    Each process gets the points of its own networks. The state is saved and restored as in
    ``jaxai.data.pipeline.batches``. Raises ``ValueError`` for a count not divisible by ``process_count``, a batch size
    below 1 and a negative seed.
    """
    check_rows(batch_size * process_count, process_index, process_count, seed)
    if count < 1 or count % process_count:
        raise UserError(f"count is {count}; choose at least 1, and a multiple of the {process_count} processes")
    mine = range(count)[own_rows(count, process_index, process_count)]

    def batch(index: int) -> dict[str, np.ndarray]:
        return {"points": np.stack([mixture.draw(batch_size, seed, index, row) for row in mine])}

    return endless(batch)
