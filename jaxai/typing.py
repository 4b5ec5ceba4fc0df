"""The dimension letters of this project, and the array aliases that annotations use.

B batch, T query time, S key time, N heads, K key/value heads, H head size, E model width, F hidden width or output
channels, V vocabulary, C channels. Images are NHWC, kernels HWIO; their spatial sizes are written out
(``"B height width C"``). Attention arrays are BTNH and BSKH.
"""

from jax import Array as Array
from jaxtyping import Float, UInt8
from jaxtyping import Int as Int
from jaxtyping import Key as Key
from jaxtyping import PyTree as PyTree
from numpy import ndarray

Images = Float[Array, "B height width C"]
"""Float images, the range as the function says; the project's networks take [-1, 1]."""

Samples = Float[Array, "B *sample"]
"""Examples of any shape: images, or points."""

Kernel = Float[Array, "kernel_height kernel_width C F"]
"""A convolution kernel, HWIO."""

Pixels = UInt8[Array | ndarray, "B height width C"]
"""Images as stored, 0 ... 255."""
