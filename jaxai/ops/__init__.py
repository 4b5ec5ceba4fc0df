"""Pure functions on arrays; those on batches and images are here, the layers' in the modules."""

from jaxai.ops.batched import map_batches as map_batches
from jaxai.ops.degradation import holes as holes
from jaxai.ops.degradation import low_contrast as low_contrast
from jaxai.ops.degradation import noisy as noisy
from jaxai.ops.pixels import to_signed as to_signed
from jaxai.ops.pixels import to_unit as to_unit
from jaxai.ops.resampling import depth_to_space as depth_to_space
from jaxai.ops.resampling import downscaled as downscaled
from jaxai.ops.resampling import space_to_depth as space_to_depth
from jaxai.ops.resampling import upscaled as upscaled
