"""The dimension letters of this project, and the array aliases used in annotations.

B batch, T time steps or query positions, S key positions, N heads, K key/value heads, H head size or hidden units of a
recurrent cell, E model width, I inputs and O outputs of a layer, F hidden width or output channels, V vocabulary (of
attention's values: their head size), C channels, Z latent size of a generator.

In single places: G gates times hidden units in recurrent cells, query heads per key/value head (N / K) in attention;
R query rows whose attention weights are returned; M encoder sequences in cross-attention, each shared by B / M rows
(beams); D channels of a second image, such as hints or another domain; S restarts when latents are fitted to images.

Images are NHWC, kernels HWIO; their spatial sizes are written out (``"B height width C"``). Attention arrays are BTNH
and BSKH.
"""

from jax import Array as Array
from jaxtyping import Float, UInt8
from jaxtyping import Int as Int
from jaxtyping import Key as Key
from jaxtyping import PyTree as PyTree
from numpy import ndarray

Images = Float[Array, "B height width C"]
"""Float images in the range that the function documents; the project's networks use [-1, 1]."""

Samples = Float[Array, "B *sample"]
"""Examples of any shape, such as images or points."""

Kernel = Float[Array, "kernel_height kernel_width C F"]
"""A convolution kernel, HWIO."""

Pixels = UInt8[Array | ndarray, "B height width C"]
"""Images as stored, 0 ... 255."""
