"""Data sets in memory and endless batches of them."""

from jaxai.data.dataset import Dataset as Dataset
from jaxai.data.images.augmentation import alternating_flip as alternating_flip
from jaxai.data.images.augmentation import random_translate as random_translate
from jaxai.data.images.sources import ImageDataset as ImageDataset
from jaxai.data.images.sources import load as load
from jaxai.data.pipeline import batches as batches
