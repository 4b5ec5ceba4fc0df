"""Independent random streams from one seed."""

import jax

from jaxai.typing import Array


class Keys:
    """Named keys derived from one root key, so that no two uses of a seed share a key.

    ``parameters`` for initialisation, ``steps`` for the training steps (each folds in its number), ``sampling`` for
    samples, ``evaluation`` for metrics, ``data`` for examples and augmentations that are the same in every epoch.
    """

    def __init__(self, seed: int | Array) -> None:
        self.root = jax.random.key(seed) if isinstance(seed, int) else seed

    @property
    def parameters(self) -> Array:
        return self._stream(0)

    @property
    def steps(self) -> Array:
        return self._stream(1)

    @property
    def sampling(self) -> Array:
        return self._stream(2)

    @property
    def evaluation(self) -> Array:
        return self._stream(3)

    @property
    def data(self) -> Array:
        return self._stream(4)

    def split(self, count: int) -> Array:
        """Keys [count] that each seed another `Keys`, for networks trained side by side."""
        return jax.random.split(self._stream(5), count)

    def _stream(self, number: int) -> Array:
        return jax.random.fold_in(self.root, number)
