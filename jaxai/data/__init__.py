"""In-memory data sets and endless iterators of batches.

Names that need grain or JAX are imported lazily, on first use: loading and preparing data needs neither.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxai.data.dataset import Dataset as Dataset
from jaxai.data.images.sources import ImageDataset as ImageDataset
from jaxai.data.images.sources import load as load

if TYPE_CHECKING:
    from jaxai.data.images.augmentation import alternating_flip as alternating_flip
    from jaxai.data.images.augmentation import random_translate as random_translate
    from jaxai.data.images.photos import crop_batches as crop_batches
    from jaxai.data.images.photos import load_photos as load_photos
    from jaxai.data.images.photos import photo_details as photo_details
    from jaxai.data.images.photos import trimmed as trimmed
    from jaxai.data.images.photos import with_halves as with_halves
    from jaxai.data.pipeline import batches as batches

LAZY = {
    "jaxai.data.images.augmentation": ("alternating_flip", "random_translate"),
    "jaxai.data.images.photos": ("crop_batches", "load_photos", "photo_details", "trimmed", "with_halves"),
    "jaxai.data.pipeline": ("batches",),
}


def __getattr__(name: str) -> Any:
    """Import a lazy name from its module."""
    for module, names in LAZY.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
