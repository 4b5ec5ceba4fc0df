"""Data sets as uint8 arrays: ``load`` finds them, ``jaxai.data.pipeline.batches`` feeds them to a training loop."""

from jaxai.data.images.sources import Dataset as Dataset
from jaxai.data.images.sources import load as load
