"""Pure functions on arrays: convolution, pooling, recurrence, dropout, dense products, resampling, pixels."""

from jaxai.ops.batched import map_batches as map_batches
from jaxai.ops.conv import conv_transpose as conv_transpose
from jaxai.ops.degradation import RestorationTask as RestorationTask
from jaxai.ops.degradation import degrade as degrade
from jaxai.ops.degradation import holes as holes
from jaxai.ops.degradation import low_contrast as low_contrast
from jaxai.ops.degradation import noisy as noisy
from jaxai.ops.pixels import to_signed as to_signed
from jaxai.ops.pixels import to_unit as to_unit
from jaxai.ops.pool import avg_pool as avg_pool
from jaxai.ops.pool import blur_downsample as blur_downsample
from jaxai.ops.pool import blur_upsample as blur_upsample
from jaxai.ops.pool import max_pool as max_pool
from jaxai.ops.recurrent import gru as gru
from jaxai.ops.recurrent import lstm as lstm
from jaxai.ops.recurrent import rnn as rnn
from jaxai.ops.resampling import depth_to_space as depth_to_space
from jaxai.ops.resampling import downscaled as downscaled
from jaxai.ops.resampling import pad_to_multiple as pad_to_multiple
from jaxai.ops.resampling import space_to_depth as space_to_depth
from jaxai.ops.resampling import upscaled as upscaled
