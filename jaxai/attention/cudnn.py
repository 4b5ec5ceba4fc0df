"""cuDNN's flash attention, forward and backward, as XLA's custom calls; what is private in JAX stands here alone.

The calls are those of ``jax.nn.dot_product_attention(implementation="cudnn")``, which a test holds. They are made here,
since JAX's function rounds the log-sum-exp to the inputs' dtype and asks for a GPU while a program is traced.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import dispatch  # private: see needs_devices
from jax._src.lib import cuda_versions  # private: None where the CUDA plugin is not installed
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxai.attention.masks import Lengths, SlidingWindow, conjuncts, is_causal
from jaxai.attention.reference import Call
from jaxai.typing import Array

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
ELEMENT_TYPES = {"float16": "F16", "bfloat16": "BF16"}

AMPERE, HOPPER = (8, 0), (9, 0)
"""The least compute capability, and that from which heads may have more than 128 features."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What cuDNN is told of a call beside its arrays.

    A query at q sees keys k <= q where ``causal``, of these the last ``window`` where that is not 0; with ``padded``
    the queries and keys before each row's two lengths alone.
    """

    scale: float
    causal: bool
    window: int
    padded: bool

    @property
    def mask_type(self) -> str:
        """XLA's name of the mask."""
        names = [name for name, on in (("PADDING", self.padded), ("CAUSAL", self.causal)) if on]
        return "_".join(names) or "NO_MASK"


def kernel_of(call: Call) -> Kernel | None:
    """The kernel that computes a call, or None where cuDNN can't express it.

    It can with float16 or bfloat16, more than one query, heads of equal sizes for keys and values that are a multiple
    of 8 up to 256, and a mask of these: none, causal, causal within a window (unless some query's window begins behind
    the last key), lengths, causal with lengths.
    """
    extras = call.bias, call.score_mod, call.soft_cap, call.factor, call.offsets
    if call.dropout_rate or any(x is not None for x in extras):
        return None
    _, T, S, _, _ = call.sizes
    size = call.query.shape[-1]
    if jnp.result_type(call.query).name not in ELEMENT_TYPES or T == 1:
        return None
    if size != call.value.shape[-1] or size % 8 or size > 256:
        return None
    parts = conjuncts(call.mask)
    windows = [part for part in parts if isinstance(part, SlidingWindow)]
    padded = any(isinstance(part, Lengths) for part in parts)
    causal = any(is_causal(part) for part in parts)
    if not all(is_causal(part) or isinstance(part, SlidingWindow | Lengths) for part in parts):
        return None
    left = min((window.left for window in windows if window.left is not None), default=None)
    if (windows and (not causal or padded)) or (left is not None and T > S):
        return None
    return Kernel(call.scale, causal, 0 if left is None else left + 1, padded)


# Arrays


def forward(kernel: Kernel, call: Call) -> tuple[Array, Array]:
    """Attention [B, T, N, H] in the inputs' dtype and its log-sum-exp [B, T, N] in float32."""
    arrays, seen = operands(kernel, call)
    kinds = "query", "key", "key", *["length"] * (len(arrays) - 3)
    run = by_device(functools.partial(forward_call, kernel), kinds, ("query", "row"), groups(call))
    out, lse = by_batch(run)(*arrays)
    if seen is None:
        return out, lse
    return jnp.where(seen[..., None, None], out, 0), jnp.where(seen[..., None], lse, -jnp.inf)


def backward(kernel: Kernel, call: Call, out: Array, lse: Array, cotangent: Array) -> tuple[Array, Array, Array]:
    """The cotangents of query, key and value, from ``out``, its log-sum-exp and its cotangent [B, T, N, H].

    ``out`` and ``lse`` may have one more term in the softmax's sum, as sinks add it: with weights p = exp(s - lse) the
    gradient by a score s is p (v - out) cotangent.
    """
    (query, key, value, *lengths), seen = operands(kernel, call)
    cotangent = cotangent.astype(out.dtype)
    if seen is not None:  # weights of exp(s - 1e30) are 0
        cotangent = jnp.where(seen[..., None, None], cotangent, 0)
        lse = jnp.where(seen[..., None], lse, 1e30)
    kinds = "query", "key", "key", "row", "query", "query", *["length"] * len(lengths)
    run = by_device(functools.partial(backward_call, kernel), kinds, ("query", "key", "key"), groups(call))
    query_ct, key_ct, value_ct = by_batch(run)(query, key, value, lse, cotangent, out, *lengths)
    if seen is not None:
        real = before(lengths[1], key.shape[1])[..., None, None]
        query_ct = jnp.where(seen[..., None, None], query_ct, 0)
        key_ct, value_ct = (jnp.where(real, x, 0) for x in (key_ct, value_ct))
    return query_ct, key_ct, value_ct


def groups(call: Call) -> int:
    """Query heads of one key head."""
    return call.query.shape[2] // call.key.shape[2]


def operands(kernel: Kernel, call: Call) -> tuple[list[Array], Array | None]:
    """The kernels' arrays: query, key, value and, where padded, lengths [B] of queries and keys; and ``seen``.

    ``seen`` [B, T] tells which queries see a key, None if all do. What lies behind the keys' end is zeroed, since a NaN
    there would spread through its weight of 0; lengths are at least 1, since the sum of no weights has no logarithm.
    """
    if not kernel.padded:
        return [call.query, call.key, call.value], None
    B, T, S, _, _ = call.sizes
    parts = [part for part in conjuncts(call.mask) if isinstance(part, Lengths)]
    lengths = []
    for most, given in ((T, [part.query for part in parts]), (S, [part.key for part in parts])):
        each = [jnp.broadcast_to(jnp.asarray(x, np.int32), (B,)) for x in given if x is not None]
        lengths.append(functools.reduce(jnp.minimum, each, jnp.full(B, most, np.int32)))
    seen = before(lengths[0], T) & (lengths[1] > 0)[:, None]
    real = before(lengths[1], S)[..., None, None]
    key, value = (jnp.where(real, x, 0) for x in (call.key, call.value))
    return [call.query, key, value, *(jnp.maximum(x, 1) for x in lengths)], seen


def before(lengths: Array, size: int) -> Array:
    """Which positions [B, size] come before each row's length."""
    return jnp.arange(size, dtype=np.int32)[None] < lengths[:, None]


# Devices


def needs_devices(primitive: Primitive) -> None:
    """Let JAX tell the devices of a program to the lowering of this primitive.

    ``custom_partitioning`` asks for them, and JAX hands them only to programs in whose jaxpr it finds a primitive that
    is in a private set. Without it lowering fails with "AssertionError: Please file a bug".
    """
    dispatch.prim_requires_devices_during_lowering.add(primitive)


def runs(context: Any, head_size: int) -> bool:
    """Whether the device that a program is lowered for has cuDNN's kernels; with no GPU there, an Ampere is assumed."""
    axes = context.module_context.axis_context
    found = axes.mesh.devices.flat if hasattr(axes, "mesh") else getattr(axes, "device_assignment", None)
    device = next(iter(found or []), None)
    capability = AMPERE
    if device is not None and device.platform == "gpu":
        capability = tuple(int(x) for x in device.compute_capability.split("."))
    if capability == (10, 3) and cuda_versions is not None and cuda_versions.cudnn_get_version() < 91100:
        return False
    return capability >= (AMPERE if head_size <= 128 else HOPPER)


AXES = {"query": "b t {heads} h", "key": "b s n h", "row": "b t {heads}", "length": "b"}
"""The axes of the kernels' arrays, as ``custom_partitioning`` writes them."""


def by_device(call: Callable[..., Any], arguments: Sequence[str], results: Sequence[str], groups: int) -> Any:
    """A kernel on each device's part of batch and heads: XLA would gather what goes into a custom call.

    ``arguments`` and ``results`` are names of AXES.
    """

    def partition(mesh, shapes, _):
        sharding, batch, heads = shapes[1].sharding, None, None
        if isinstance(sharding, NamedSharding):
            batch, _, heads, _ = (*sharding.spec, *(None,) * (4 - len(sharding.spec)))
        else:  # a program in which nothing names a mesh: every device computes the whole
            mesh = Mesh(np.array(sorted(sharding.device_set, key=lambda device: device.id)), ("device",))
        specs = {"query": (batch, None, heads, None), "row": (batch, None, heads), "length": (batch,)}
        shardings = {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in specs.items()}
        shardings["key"] = shardings["query"]
        return mesh, call, tuple(shardings[name] for name in results), tuple(shardings[name] for name in arguments)

    heads = "(n g)" if groups > 1 else "n"
    ins, outs = (", ".join(AXES[name].format(heads=heads) for name in names) for names in (arguments, results))
    factors: dict[str, Any] = {"need_replication_factors": ("t", "h", "s")}
    if groups > 1:
        factors = {"need_replication_factors": ("t", "g", "h", "s"), "g": groups}
    part = custom_partitioning(call)
    part.def_partition(partition, sharding_rule=f"{ins} -> {outs}", **factors)
    return part


def by_batch(run: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that vmap maps by making its axis part of the batch, the first axis of every array."""

    @jax.custom_batching.custom_vmap
    def kernel(*arrays):
        return run(*arrays)

    @kernel.def_vmap
    def _(size, mapped, *arrays):
        whole = (
            x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_mapped in zip(arrays, mapped, strict=True)
        )
        results = kernel(*(x.reshape(-1, *x.shape[2:]) for x in whole))
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in results), (True,) * len(results)

    return kernel


# The custom calls


def forward_call(kernel: Kernel, query: Array, key: Array, value: Array, *lengths: Array) -> tuple[Array, Array]:
    """cuDNN's forward pass: [B, T, N, H] in the inputs' dtype and the log-sum-exp [B, T, N] in float32."""
    B, T, N, _ = query.shape
    results = [((B, N, T, value.shape[-1]), query.dtype), ((B, N, T), np.float32)]
    products = {"bmm1": PRODUCTS["query key"], "bmm2": PRODUCTS["weights value"]}
    out, lse = custom_call(FORWARD, kernel, products, [query, key, value, *lengths], results)
    return out.swapaxes(1, 2), lse.swapaxes(1, 2)


def backward_call(
    kernel: Kernel, query: Array, key: Array, value: Array, lse: Array, cotangent: Array, out: Array, *lengths: Array
) -> tuple[Array, Array, Array]:
    """cuDNN's backward pass: the cotangents of query [B, T, N, H], key [B, S, K, H] and value [B, S, K, H]."""
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    results = [((B, heads, length, H), query.dtype) for heads, length in ((N, T), (K, S), (K, S))]
    products = {
        "bmm1_grad_gemm1": PRODUCTS["weights^T query"],
        "bmm1_grad_gemm2": PRODUCTS["weights value"],
        "bmm2_grad_gemm1": PRODUCTS["weights^T query"],
        "bmm2_grad_gemm2": PRODUCTS["query key"],
    }
    arrays = [query, key, value, lse.swapaxes(1, 2), cotangent, out, *lengths]
    query_ct, key_ct, value_ct = custom_call(BACKWARD, kernel, products, arrays, results)
    return query_ct.swapaxes(1, 2), key_ct.swapaxes(1, 2), value_ct.swapaxes(1, 2)


PRODUCTS = {
    "query key": (3, 3, ["0", "2"], ["0", "2"]),
    "weights value": (3, 1, ["0", "1"], ["0", "2"]),
    "weights^T query": (2, 1, ["0", "1"], ["0", "2"]),
}
"""Contracted axes and batch axes of the products of BTNH, BSNH and weights BNTS."""


def custom_call(
    target: str,
    kernel: Kernel,
    products: dict[str, tuple[int, int, list[str], list[str]]],
    arrays: Sequence[Array],
    results: Sequence[tuple[tuple[int, ...], Any]],
) -> list[Array]:
    """One of cuDNN's calls. Results of rank 4 are [B, N, T, H], but [B, T, N, H] in memory."""
    query, key = arrays[:2]
    B, T, N, _ = query.shape
    layout = {
        "dim_level_types": [],
        "dim_unique": [],
        "dim_ordered": [],
        "minor_to_major": ["3", "2", "1", "0"],
        "tiles": [],
        "element_size_in_bits": "0",
        "memory_space": "0",
        "index_primitive_type": "PRIMITIVE_TYPE_INVALID",
        "pointer_primitive_type": "PRIMITIVE_TYPE_INVALID",
        "dynamic_shape_metadata_prefix_bytes": "0",
    }
    config = {
        "algorithm": {
            "algo_id": "0",
            "math_type": "TENSOR_OP_MATH",
            "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True,
            "workspace_size": "0",
        },
        "fmha_scale": kernel.scale,
        "intermediate_tensor_shape": {
            "element_type": ELEMENT_TYPES[query.dtype.name],
            "dimensions": [str(B), str(N), str(T), str(key.shape[1])],
            "tuple_shapes": [],
            "layout": layout,
            "is_dynamic_dimension": [False] * 4,
        },
        "is_flash_attention": True,
        "mask_type": kernel.mask_type,
    }
    for name, (lhs, rhs, lhs_batch, rhs_batch) in products.items():
        config[f"{name}_dot_dimension_numbers"] = {
            "lhs_contracting_dimensions": [str(lhs)],
            "rhs_contracting_dimensions": [str(rhs)],
            "lhs_batch_dimensions": lhs_batch,
            "rhs_batch_dimensions": rhs_batch,
        }
    config |= {
        "dropout_rate": 0.0,
        "seed": 42,
        "sliding_window_length": kernel.window,
        "max_seg_per_batch": 1,
        "is_paged_attention": False,
    }
    workspace = jax.ShapeDtypeStruct((0,), np.uint8)
    found: Any = jax.ffi.ffi_call(
        target,
        [*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results), workspace],
        output_layouts=[*((0, 2, 1, 3) if len(shape) == 4 else None for shape, _ in results), None],
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": config}),
    )(*arrays)
    return list(found[:-1])
