"""cuDNN's flash attention, forward and backward, as XLA's custom calls: the only module with private names of JAX.

The calls are those of ``jax.nn.dot_product_attention(implementation="cudnn")``; a test compares them. They are made
here, since JAX's function rounds the log-sum-exp to the inputs' dtype and asks for a GPU while a program is traced.
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

AMPERE = 8, 0
"""The least compute capability that has the kernels."""

HOPPER = 9
"""The major compute capability whose kernels take heads of up to 256 features; the others take 128."""

BROKEN = 91000, 91001
"""Versions of cuDNN in which NVIDIA's own front end refuses the backward pass."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The configuration of one of cuDNN's calls.

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
    of 8 up to 256, and a mask of these: none, causal, causal within a window (with no more queries than keys), lengths,
    causal with lengths.
    """
    extras = call.bias, call.score_mod, call.soft_cap, call.factor, call.offsets
    if call.dropout_rate or any(x is not None for x in extras) or not 0 < call.scale < np.inf:
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
    run = functools.partial(forward_call, kernel)
    out, lse = by_batch(functools.partial(by_device, run, kinds, ("query", "row"), heads_of(call)))(*arrays)
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
    run = functools.partial(backward_call, kernel)
    run = by_batch(functools.partial(by_device, run, kinds, ("query", "key", "key"), heads_of(call)))
    query_ct, key_ct, value_ct = run(query, key, value, lse, cotangent, out, *lengths)
    if seen is not None:
        real = before(lengths[1], key.shape[1])[..., None, None]
        query_ct = jnp.where(seen[..., None, None], query_ct, 0)
        key_ct, value_ct = (jnp.where(real, x, 0) for x in (key_ct, value_ct))
    return query_ct, key_ct, value_ct


def heads_of(call: Call) -> tuple[int, int]:
    """Heads of the queries and of the keys."""
    return call.query.shape[2], call.key.shape[2]


def operands(kernel: Kernel, call: Call) -> tuple[list[Array], Array | None]:
    """The kernels' arrays: query, key, value and, where padded, lengths [B] of queries and keys; and ``seen``.

    ``seen`` [B, T] tells which queries see a key, None if all do. Padding is zeroed, since a NaN there would spread
    through its weight of 0; lengths are at least 1, since the sum of no weights has no logarithm.
    """
    if not kernel.padded:
        return [call.query, call.key, call.value], None
    B, T, S, _, _ = call.sizes
    parts = [part for part in conjuncts(call.mask) if isinstance(part, Lengths)]
    lengths = []
    for most, given in ((T, [part.query for part in parts]), (S, [part.key for part in parts])):
        each = [jnp.broadcast_to(jnp.asarray(x, np.int32), (B,)) for x in given if x is not None]
        lengths.append(functools.reduce(jnp.minimum, each, jnp.full(B, most, np.int32)))
    real_queries, real_keys = before(lengths[0], T), before(lengths[1], S)
    seen = real_queries & (lengths[1] > 0)[:, None]
    query = jnp.where(real_queries[..., None, None], call.query, 0)
    key, value = (jnp.where(real_keys[..., None, None], x, 0) for x in (call.key, call.value))
    return [query, key, value, *(jnp.maximum(x, 1) for x in lengths)], seen


def before(lengths: Array, size: int) -> Array:
    """Which positions [B, size] come before each row's length."""
    return jnp.arange(size, dtype=np.int32)[None] < lengths[:, None]


# Devices


def needs_devices(primitive: Primitive) -> None:
    """Let JAX tell the devices of a program to the lowering of this primitive.

    ``custom_partitioning`` asks for them, and JAX hands them only to programs in whose jaxpr it finds a primitive that
    is in a private set. Without it lowering fails with "AssertionError: Please file a bug"; with it a program can't be
    lowered for arguments on an ``AbstractMesh``.
    """
    dispatch.prim_requires_devices_during_lowering.add(primitive)


def runs(context: Any, head_size: int) -> bool:
    """Whether the device that a program is lowered for has cuDNN's kernels; without a GPU, Ampere is assumed."""
    axes = context.module_context.axis_context
    devices: Any = getattr(axes, "device_assignment", None) or ()
    if isinstance(mesh := getattr(axes, "mesh", None), Mesh):
        devices = mesh.devices.flat
    device, capability = next(iter(devices), None), AMPERE
    if device is not None and device.platform == "gpu":
        capability = tuple(int(x) for x in device.compute_capability.split("."))
    version = None if cuda_versions is None else cuda_versions.cudnn_get_version()
    if version in BROKEN or (version is not None and version < 91100 and capability == (10, 3)):
        return False
    return capability >= AMPERE and (head_size <= 128 or capability[0] == HOPPER)


AXES = {"query": "b t {heads} h", "key": "b s n h", "row": "b t {heads}", "length": "b"}
"""The axes of the kernels' arrays, as ``custom_partitioning`` writes them."""


def by_device(
    call: Callable[..., Any], arguments: Sequence[str], results: Sequence[str], heads: tuple[int, int], lead: int
) -> Callable[..., Any]:
    """A kernel on each device's part of batch and heads; without a rule XLA gathers a custom call's operands.

    ``arguments`` and ``results`` are names of AXES, ``heads`` are those of queries and of keys; before the batch all
    arrays have ``lead`` more axes, which are as good as the batch.
    """

    def on_part(*arrays):
        shape = arrays[0].shape[: lead + 1]
        found = call(*(x.reshape(-1, *x.shape[lead + 1 :]) for x in arrays))
        return tuple(x.reshape(*shape, *x.shape[1:]) for x in found)

    def partition(mesh, shapes, _):
        sharding: Any = shapes[1].sharding
        if mesh.empty:  # nothing in the program names a mesh: every device computes the whole
            mesh = Mesh(np.array(sorted(sharding.device_set, key=lambda device: device.id)), ("device",))
            sharding = NamedSharding(mesh, PartitionSpec())
        spec = tuple(sharding.spec)
        *batch, _, by_heads, _ = (*spec, *(None,) * (lead + 4 - len(spec)))
        specs = {"query": (*batch, None, by_heads, None), "row": (*batch, None, by_heads), "length": batch}
        shardings = {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in specs.items()}
        shardings["key"] = shardings["query"]
        return mesh, on_part, tuple(shardings[name] for name in results), tuple(shardings[name] for name in arguments)

    queries, keys = heads
    grouped = "n" if queries == keys else "g" if keys == 1 else "(n g)"  # a factor of size 1 can't be one of two
    before = [f"v{axis}" for axis in range(lead)]
    ins, outs = (
        ", ".join(" ".join([*before, AXES[name].format(heads=grouped)]) for name in names)
        for names in (arguments, results)
    )
    factors: dict[str, Any] = {"g": queries // keys} if grouped == "(n g)" else {}
    factors["need_replication_factors"] = ("t", *(["g"] if "g" in grouped else []), "h", "s")  # as they appear
    part = custom_partitioning(on_part)
    part.def_partition(partition, sharding_rule=f"{ins} -> {outs}", **factors)
    return part


def by_batch(build: Callable[[int], Callable[..., Any]], lead: int = 0) -> Callable[..., Any]:
    """``build(lead)`` as a function that vmap maps by giving all arrays one more leading axis: ``build(lead + 1)``."""

    @jax.custom_batching.custom_vmap
    def kernel(*arrays):
        return build(lead)(*arrays)

    @kernel.def_vmap
    def _(size, mapped, *arrays):
        results = by_batch(build, lead + 1)(
            *(
                x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
                for x, is_mapped in zip(arrays, mapped, strict=True)
            )
        )
        return results, (True,) * len(results)

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
