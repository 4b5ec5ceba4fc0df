"""Devices and processes: meshes, shardings and multi-process sessions."""

from jaxai.distributed.mesh import data_axis_size as data_axis_size
from jaxai.distributed.mesh import make_mesh as make_mesh
from jaxai.distributed.sharding import batch_sharding as batch_sharding
from jaxai.distributed.sharding import gather_params as gather_params
from jaxai.distributed.sharding import state_sharding as state_sharding
