"""cuDNN's flash attention, forward and backward, as XLA custom calls: the only module with private names of JAX.

The calls equal those of ``jax.nn.dot_product_attention(implementation="cudnn")``; a test compares them. JAX's function
itself can't be used: it rounds the log-sum-exp to the inputs' dtype and needs a GPU while a program is traced.
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
"""The least compute capability with these kernels."""

HOPPER = 9
"""The major compute capability whose kernels take heads of up to 256 features; the others take 128."""

BROKEN = 91000, 91001
"""Versions of cuDNN whose backward pass NVIDIA's own front end refuses."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The configuration of one of cuDNN's calls.

    A query at q sees keys k <= q if ``causal``, of these only the last ``window`` if that is not 0. If ``padded``, each
    batch row has lengths of its queries and keys, behind which all is masked.
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

    It can with float16 or bfloat16, more than one query, key and value heads of one size that is a multiple of 8 up to
    256, and one of these masks: none, causal, causal within a window (with no more queries than keys), lengths, causal
    with lengths.
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

    ``out`` and ``lse`` may include sinks: the gradient with respect to a score s, p (v - out) cotangent with
    p = exp(s - lse), holds for them too.
    """
    (query, key, value, *lengths), seen = operands(kernel, call)
    cotangent = cotangent.astype(out.dtype)
    if seen is not None:  # makes the weights exp(s - lse) 0
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

    ``seen`` [B, T] marks the queries that see a key, None if all do. Padding is zeroed, since a NaN there would spread
    through its weight of 0; lengths are raised to 1, since an empty sum of weights has no logarithm.
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
    """Whether each position [B, size] is less than its row's length."""
    return jnp.arange(size, dtype=np.int32)[None] < lengths[:, None]


# Devices


def needs_devices(primitive: Primitive) -> None:
    """Make JAX pass a program's devices to the lowering of this primitive.

    ``custom_partitioning`` requires them, and JAX passes them only to programs whose jaxpr has a primitive from a
    private set. Outside this set lowering fails with "AssertionError: Please file a bug"; inside it a program can't be
    lowered for arguments on an ``AbstractMesh``.
    """
    dispatch.prim_requires_devices_during_lowering.add(primitive)


def runs(context: Any, head_size: int) -> bool:
    """Whether the device that a program is lowered for has cuDNN's kernels; Ampere is assumed if no GPU is present."""
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
    """A kernel that each device runs on its part of batch and heads; by default XLA gathers a custom call's operands.

    ``arguments`` and ``results`` are names of AXES, ``heads`` the numbers of query and key heads; ``lead`` further axes
    before the batch are treated like it.
    """

    def on_part(*arrays):
        shape = arrays[0].shape[: lead + 1]
        found = call(*(x.reshape(-1, *x.shape[lead + 1 :]) for x in arrays))
        return tuple(x.reshape(*shape, *x.shape[1:]) for x in found)

    def partition(mesh, shapes, _):
        sharding: Any = shapes[1].sharding
        if mesh.empty:  # the program has no mesh: each device computes all
            mesh = Mesh(np.array(sorted(sharding.device_set, key=lambda device: device.id)), ("device",))
            sharding = NamedSharding(mesh, PartitionSpec())
        spec = tuple(sharding.spec)
        *batch, _, by_heads, _ = (*spec, *(None,) * (lead + 4 - len(spec)))
        specs = {"query": (*batch, None, by_heads, None), "row": (*batch, None, by_heads), "length": batch}
        shardings = {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in specs.items()}
        shardings["key"] = shardings["query"]
        return mesh, on_part, tuple(shardings[name] for name in results), tuple(shardings[name] for name in arguments)

    queries, keys = heads
    grouped = "n" if queries == keys else "g" if keys == 1 else "(n g)"  # (n g) needs both factors above 1
    before = [f"v{axis}" for axis in range(lead)]
    ins, outs = (
        ", ".join(" ".join([*before, AXES[name].format(heads=grouped)]) for name in names)
        for names in (arguments, results)
    )
    factors: dict[str, Any] = {"g": queries // keys} if grouped == "(n g)" else {}
    factors["need_replication_factors"] = ("t", *(["g"] if "g" in grouped else []), "h", "s")  # in order of appearance
    part = custom_partitioning(on_part)
    part.def_partition(partition, sharding_rule=f"{ins} -> {outs}", **factors)
    return part


def by_batch(build: Callable[[int], Callable[..., Any]], lead: int = 0) -> Callable[..., Any]:
    """``build(lead)`` as a function whose vmap is ``build(lead + 1)``, on arrays with one more leading axis."""

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


LAYOUT = {
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
"""The memory layout of the scores, as XLA writes it."""


Products = dict[str, tuple[int, int, list[str], list[str]]]


def backend_config(kernel: Kernel, products: Products, query: Array, key: Array) -> dict[str, Any]:
    """The configuration of a call, as XLA's ``CudnnfMHABackendConfig``."""
    B, T, N, _ = query.shape
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
            "layout": LAYOUT,
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
    return config | {
        "dropout_rate": 0.0,
        "seed": 42,
        "sliding_window_length": kernel.window,
        "max_seg_per_batch": 1,
        "is_paged_attention": False,
    }


def custom_call(
    target: str,
    kernel: Kernel,
    products: Products,
    arrays: Sequence[Array],
    results: Sequence[tuple[tuple[int, ...], Any]],
) -> list[Array]:
    """One of cuDNN's calls; results of rank 4 are [B, N, T, H] with the memory layout of [B, T, N, H]."""
    config = backend_config(kernel, products, *arrays[:2])
    workspace = jax.ShapeDtypeStruct((0,), np.uint8)
    found: Any = jax.ffi.ffi_call(
        target,
        [*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results), workspace],
        output_layouts=[*((0, 2, 1, 3) if len(shape) == 4 else None for shape, _ in results), None],
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": config}),
    )(*arrays)
    return list(found[:-1])
