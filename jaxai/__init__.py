"""jaxai: attention, GANs, convolutional and recurrent networks as pure functions and thin Flax modules."""

__version__ = "0.1.0"
