"""Data sets in memory and endless batches of them."""

from jaxai.data.dataset import Dataset as Dataset
from jaxai.data.images.augmentation import alternating_flip as alternating_flip
from jaxai.data.images.augmentation import random_translate as random_translate
from jaxai.data.images.photos import crop_batches as crop_batches
from jaxai.data.images.photos import load_photos as load_photos
from jaxai.data.images.photos import photo_details as photo_details
from jaxai.data.images.photos import trimmed as trimmed
from jaxai.data.images.photos import with_halves as with_halves
from jaxai.data.images.sources import ImageDataset as ImageDataset
from jaxai.data.images.sources import load as load
from jaxai.data.pipeline import batches as batches
