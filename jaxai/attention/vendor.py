"""Other people's attention: cuDNN's kernel under our derivatives, and jax.nn, cuDNN and tokamax as they are."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.nn import dot_product_attention as jax_nn_attention  # bound now: ours may be put in its place
from jax.sharding import NamedSharding, PartitionSpec

from jaxai.attention.blocks import replace
from jaxai.attention.masks import And, Causal, Lengths, Mask, SlidingWindow
from jaxai.attention.reference import Call
from jaxai.typing import Array

Kernel = Callable[..., tuple[Array, Array]]

# cuDNN's forward pass for the default implementation


def cudnn_forward(call: Call) -> Kernel | None:
    """cuDNN's forward pass as a function of query, key and value, or None where it can't express the call.

    It can where it agrees with this package on every row: float16 or bfloat16, head sizes that are a multiple of 8 up
    to 128, full, causal or causal within a window. It is left out for lengths and bias, where rows that see nothing
    would not give 0. jax.nn offers the same kernel, but rounds the log-sum-exp to the inputs' dtype and asks for a GPU
    while a program is traced, so the call is made here: the same one, which a test holds.
    """
    T, S = call.sizes[1:3]
    sizes = call.query.shape[-1], call.value.shape[-1]
    extras = call.bias, call.score_mod, call.soft_cap, call.factor
    plain = all(x is None for x in extras) and not call.dropout_rate
    half = jnp.result_type(call.query) in (jnp.float16, jnp.bfloat16)
    window = causal_window(call.mask)
    if not (plain and half and call.offsets is None and sizes[0] == sizes[1] and sizes[0] % 8 == 0 and sizes[0] <= 128):
        return None
    if window is None or (window > 0 and T > S):
        return None
    causal = call.mask is not None

    @jax.custom_batching.custom_vmap
    def kernel(query, key, value):
        part = partitioned(call.scale, causal, window, query.shape[2] // key.shape[2])
        return part(*(x.astype(call.query.dtype) for x in (query, key, value)))

    @kernel.def_vmap
    def _(size, mapped, *arrays):
        arrays = [
            x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_mapped in zip(arrays, mapped, strict=True)
        ]
        out, lse = kernel(*(x.reshape(-1, *x.shape[2:]) for x in arrays))
        return tuple(x.reshape(size, -1, *x.shape[1:]) for x in (out, lse)), (True, True)

    return kernel


def partitioned(scale: float, causal: bool, window: int, groups: int) -> Kernel:
    """The kernel on each device's part of batch and heads: XLA would gather what goes into a custom call."""

    def part(query, key, value):
        return fused(query, key, value, scale, causal, window)

    def partition(mesh, arguments, results):
        spec = arguments[1].sharding.spec
        batch, _, heads, _ = (*spec, *(None,) * (4 - len(spec)))
        whole = NamedSharding(mesh, PartitionSpec(batch, None, heads, None))
        return mesh, part, (whole, NamedSharding(mesh, PartitionSpec(batch, None, heads))), (whole,) * 3

    if jax.default_backend() != "gpu":  # lowered on another host, for devices that custom_partitioning would ask for
        return part
    kernel = custom_partitioning(part)
    if groups > 1:
        rule = "b t (n g) h, b s n h, b s n h -> b t (n g) h, b t (n g)"
        kernel.def_partition(partition, sharding_rule=rule, need_replication_factors=("t", "g", "h", "s"), g=groups)
    else:
        rule = "b t n h, b s n h, b s n h -> b t n h, b t n"
        kernel.def_partition(partition, sharding_rule=rule, need_replication_factors=("t", "h", "s"))
    return kernel


def conjuncts(mask: Mask | None) -> list[Mask]:
    """The masks that all must show an entry."""
    if isinstance(mask, And):
        return [*conjuncts(mask.left), *conjuncts(mask.right)]
    return [] if mask is None else [mask]


def is_causal(mask: Mask) -> bool:
    """Whether a mask is Causal(0)."""
    return isinstance(mask, Causal) and isinstance(mask.offset, int) and mask.offset == 0


def causal_window(mask: Mask | None) -> int | None:
    """cuDNN's window of a mask: 0 without one, left + 1 with one; None where the mask is another."""
    parts = conjuncts(mask)
    windows = [part for part in parts if isinstance(part, SlidingWindow)]
    if not parts:
        return 0
    if len(windows) > 1 or len(parts) != 1 + len(windows) or not any(is_causal(part) for part in parts):
        return None
    return 0 if not windows or windows[0].left is None else windows[0].left + 1


def fused(query: Array, key: Array, value: Array, scale: float, causal: bool, window: int) -> tuple[Array, Array]:
    """cuDNN's flash attention as XLA's custom call: [B, T, N, H] and the log-sum-exp [B, T, N], both float32."""
    B, T, N, H = query.shape
    S = key.shape[1]
    types = {"float16": "F16", "bfloat16": "BF16"}

    def dot(lhs: int, rhs: int, lhs_batch: list[str], rhs_batch: list[str]) -> dict[str, list[str]]:
        return {
            "lhs_contracting_dimensions": [str(lhs)],
            "rhs_contracting_dimensions": [str(rhs)],
            "lhs_batch_dimensions": lhs_batch,
            "rhs_batch_dimensions": rhs_batch,
        }

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
        "fmha_scale": scale,
        "intermediate_tensor_shape": {
            "element_type": types[query.dtype.name],
            "dimensions": [str(B), str(N), str(T), str(S)],
            "tuple_shapes": [],
            "layout": layout,
            "is_dynamic_dimension": [False] * 4,
        },
        "is_flash_attention": True,
        "mask_type": "CAUSAL" if causal else "NO_MASK",
        "bmm1_dot_dimension_numbers": dot(3, 3, ["0", "2"], ["0", "2"]),
        "bmm2_dot_dimension_numbers": dot(3, 1, ["0", "1"], ["0", "2"]),
        "dropout_rate": 0.0,
        "seed": 42,
        "sliding_window_length": window,
        "max_seg_per_batch": 1,
        "is_paged_attention": False,
    }
    out, lse, _ = jax.ffi.ffi_call(
        "__cudnn$fmhaSoftmax",
        [
            jax.ShapeDtypeStruct((B, N, T, H), query.dtype),
            jax.ShapeDtypeStruct((B, N, T), np.float32),
            jax.ShapeDtypeStruct((0,), np.uint8),
        ],
        output_layouts=[(0, 2, 1, 3), None, None],  # BTNH in memory
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": config}),
    )(query, key, value)
    return out.swapaxes(1, 2).astype(np.float32), lse.swapaxes(1, 2)


# Whole implementations, as they are


def xla(call: Call) -> tuple[Array, Array]:
    """``jax.nn.dot_product_attention(implementation="xla")``."""
    return by_jax_nn("xla", call)


def cudnn(call: Call) -> tuple[Array, Array]:
    """``jax.nn.dot_product_attention(implementation="cudnn")``: cuDNN forward and backward."""
    return by_jax_nn("cudnn", call)


def by_jax_nn(name: Literal["xla", "cudnn"], call: Call) -> tuple[Array, Array]:
    refuse(name, call, {"precision": call.precision, "logits_soft_cap": call.soft_cap})
    try:
        out, lse = jax_nn_attention(  # pyright: ignore[reportCallIssue]
            *(call.query, call.key, call.value, call.bias),
            scale=call.scale,
            implementation=name,
            return_residual=True,
            **mask_arguments(call),
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise NotImplementedError(
            f"implementation={name!r} refuses the call ({error}): use implementation=None"
        ) from None
    return out, lse.astype(call.dtype)


def tokamax(call: Call) -> tuple[Array, Array]:
    """``tokamax.dot_product_attention``; it gives no log-sum-exp, so that is NaN."""
    try:
        import tokamax  # optional, slow to import  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise NotImplementedError("implementation='tokamax' needs the package: pip install 'jaxai[bench]'") from None
    refuse("tokamax", call, {})
    out = tokamax.dot_product_attention(
        *(call.query, call.key, call.value, call.bias),
        scale=call.scale,
        logits_soft_cap=call.soft_cap,
        precision=call.precision,
        **mask_arguments(call),
    )
    return out, jnp.full(call.query.shape[:-1], jnp.nan, call.dtype)


def refuse(name: str, call: Call, more: dict[str, Any]) -> None:
    """Raise for what a vendor's function has no argument for."""
    options = {"score_mod": call.score_mod, "sinks": call.sinks, "dropout_rate": call.dropout_rate or None, **more}
    for option, value in options.items():
        if value is not None:
            raise NotImplementedError(f"implementation={name!r} has no {option}: use implementation=None")


def mask_arguments(call: Call) -> dict[str, Any]:
    """The mask by the arguments of jax.nn and tokamax; what they have no argument for as an array."""
    B, T, S, N, _ = call.sizes
    arguments: dict[str, Any] = {}
    rest = []
    for part in conjuncts(call.mask):
        if is_causal(part):
            arguments["is_causal"] = True
        elif (
            isinstance(part, SlidingWindow)
            and part.left is not None
            and part.right is not None
            and "local_window_size" not in arguments
        ):
            arguments["local_window_size"] = part.left, part.right
        elif isinstance(part, Lengths) and not arguments.keys() & {"query_seq_lengths", "key_value_seq_lengths"}:
            given = {"query_seq_lengths": part.query, "key_value_seq_lengths": part.key}
            arguments |= {
                name: jnp.broadcast_to(jnp.asarray(x, np.int32), (B,)) for name, x in given.items() if x is not None
            }
        else:
            rest.append(part.materialize(T, S, B, N))
    if rest:
        arguments["mask"] = functools.reduce(jnp.logical_and, rest)
    return arguments


# First order only, and saying so

first_order_p = Primitive("vendor_tangent")
first_order_p.multiple_results = True
REASON = "implementation={!r} has first derivatives in reverse mode only: use implementation=None"


def first_order(kernel: Callable[[Call], tuple[Array, Array]], call: Call) -> tuple[Array, Array]:
    """A vendor's forward and backward pass, with an error that says so for any other derivative."""
    if call.factor is not None:  # they take numbers alone
        call = dataclasses.replace(call, query=call.query * call.factor.astype(call.query.dtype), factor=None)
    leaves, treedef = jax.tree.flatten(call)
    reason = REASON.format(kernel.__name__)

    def run(*arrays):
        return kernel(jax.tree.unflatten(treedef, arrays))

    @jax.custom_jvp
    def forward(*arrays):
        return run(*arrays)

    @forward.defjvp
    def _(arrays, tangents):
        floats = tuple(n for n, x in enumerate(arrays) if jnp.issubdtype(jnp.result_type(x), jnp.inexact))
        duals = (tangents[n] for n in floats)
        return forward(*arrays), tuple(first_order_p.bind(*arrays, *duals, run=run, floats=floats, reason=reason))

    return forward(*leaves)


def first_order_transpose(cotangents, *args, run, floats, reason):
    arrays = args[: len(args) - len(floats)]

    @jax.custom_jvp
    def backward(arrays, cotangents):
        gradients = jax.vjp(lambda *some: run(*replace(arrays, floats, some)), *(arrays[n] for n in floats))[1]
        return gradients(cotangents)

    @backward.defjvp
    def _(primals, tangents):
        raise NotImplementedError(reason)

    results = jax.eval_shape(run, *arrays)
    given = tuple(
        jnp.zeros(x.shape, x.dtype) if type(ct) is ad.Zero else ct for ct, x in zip(cotangents, results, strict=True)
    )
    return [None] * len(arrays) + list(backward(arrays, given))


def first_order_batch(args, axes, *, run, floats, reason):
    count = len(args) - len(floats)
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    batched = [axes[n] is not None for n in range(count)]
    for n, axis in zip(floats, axes[count:], strict=True):
        batched[n] |= axis is not None
    wanted = [*batched, *(batched[n] for n in floats)]
    moved = (
        jnp.moveaxis(x, axis, 0) if axis is not None else jnp.broadcast_to(x, (size, *x.shape)) if want else x
        for x, axis, want in zip(args, axes, wanted, strict=True)
    )
    mapped = jax.vmap(run, in_axes=[0 if b else None for b in batched])
    return first_order_p.bind(*moved, run=mapped, floats=floats, reason=reason), [0, 0]


def not_first_order(*args, reason, **params):
    raise NotImplementedError(reason)


def first_order_avals(*args, run, floats, reason):
    results = jax.eval_shape(run, *args[: len(args) - len(floats)])
    return [ShapedArray(x.shape, x.dtype) for x in results]


first_order_p.def_abstract_eval(first_order_avals)
first_order_p.def_impl(not_first_order)
mlir.register_lowering(first_order_p, mlir.lower_fun(not_first_order, multiple_results=True))
ad.primitive_transposes[first_order_p] = first_order_transpose
ad.primitive_jvps[first_order_p] = lambda primals, tangents, **params: not_first_order(**params)
batching.primitive_batchers[first_order_p] = first_order_batch
