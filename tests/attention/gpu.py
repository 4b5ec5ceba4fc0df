"""A GPU emulated on a CPU: lowerings for CUDA run here, with plain attention instead of cuDNN's kernels."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.interpreters import mlir

from jaxai.attention import Causal, Lengths, SlidingWindow, cudnn
from jaxai.attention.reference import Call, block_indices, reference

OURS = {"block_sum", "attend", "row_maxima", "contract", "fused_attend", "fused_tangent", "fused_gradient"}
"""Names of the package's primitives that may have a lowering of their own for a platform."""


def never_differentiated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with an error for any derivative of it, as for a custom call."""
    opaque = jax.custom_jvp(function)

    @opaque.defjvp
    def _(primals, tangents):
        raise AssertionError("a kernel is differentiated")

    return opaque


def mask_of(kernel: cudnn.Kernel, lengths: tuple[Any, ...]) -> Any:
    """The mask that a kernel's configuration describes."""
    masks = [Causal()] if kernel.causal else []
    masks += [SlidingWindow(kernel.window - 1, 0)] if kernel.window else []
    masks += [Lengths(*lengths)] if kernel.padded else []
    whole = None
    for mask in masks:
        whole = mask if whole is None else whole & mask
    return whole


class Kernels:
    """Substitutes for cuDNN's two calls; ``seen`` lists the traced ones, with the shapes of their queries."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.seen}

    def forward(self, kernel: cudnn.Kernel, *arrays: Any) -> tuple[Any, Any]:
        """Attention and log-sum-exp by the reference implementation."""
        self.seen.append(("forward", arrays[0].shape))

        @never_differentiated
        def run(query, key, value, *lengths):
            out, lse = reference(Call(query, key, value, mask=mask_of(kernel, lengths), scale=kernel.scale))
            return out, lse.astype(jnp.promote_types(query.dtype, jnp.float32))

        return run(*arrays)

    def backward(self, kernel: cudnn.Kernel, *arrays: Any) -> tuple[Any, Any, Any]:
        """The gradient: with p = exp(s - lse), ds = p (cotangent v - cotangent out)."""
        self.seen.append(("backward", arrays[0].shape))

        @never_differentiated
        def run(query, key, value, lse, cotangent, out, *lengths):
            dtype, (B, T, N, H), (S, K) = query.dtype, query.shape, key.shape[1:3]
            query, key, value, cotangent, out = (x.astype(lse.dtype) for x in (query, key, value, cotangent, out))
            keys, values = (jnp.repeat(x, N // K, 2) for x in (key, value))
            scores = jnp.einsum("BTNH,BSNH->BNTS", query, keys) * kernel.scale
            mask = mask_of(kernel, lengths)
            if mask is not None:
                scores = jnp.where(mask.block(*block_indices((B, N, T, S))), scores, -jnp.inf)
            weights = jnp.exp(scores - lse.swapaxes(1, 2)[..., None])
            through = jnp.einsum("BTNH,BSNH->BNTS", cotangent, values)
            through -= jnp.einsum("BTNH,BTNH->BNT", cotangent, out)[..., None]
            by_score = weights * through * kernel.scale
            gradients = [jnp.einsum("BNTS,BSNH->BTNH", by_score, keys)]
            for factor, other in ((by_score, query), (weights, cotangent)):
                by_head = jnp.einsum("BNTS,BTNH->BSNH", factor, other)
                gradients.append(by_head.reshape(B, S, K, N // K, H).sum(3))
            return tuple(x.astype(dtype) for x in gradients)

        return run(*arrays)


@contextlib.contextmanager
def emulated_gpu() -> Iterator[Kernels]:
    """CUDA's lowerings on the CPU, "gpu" as the backend's name, and substitutes for cuDNN, also in float64."""
    kernels, rules = Kernels(), mlir._platform_specific_lowerings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cudnn, "forward_call", kernels.forward)
        patch.setattr(cudnn, "backward_call", kernels.backward)
        patch.setattr(cudnn, "ELEMENT_TYPES", cudnn.ELEMENT_TYPES | {"float64": "F64"})
        patch.setattr(jax, "default_backend", lambda: "gpu")
        for primitive in [p for p in (*rules["cpu"], *rules["cuda"]) if p.name in OURS]:
            if primitive in rules["cuda"]:
                patch.setitem(rules["cpu"], primitive, rules["cuda"][primitive])
            else:
                patch.delitem(rules["cpu"], primitive, raising=False)
        cached = jax.config.jax_enable_compilation_cache
        jax.config.update("jax_enable_compilation_cache", False)  # callbacks are in programs as addresses
        jax.clear_caches()
        try:
            yield kernels
        finally:
            jax.config.update("jax_enable_compilation_cache", cached)
            jax.clear_caches()


TARGETS = cudnn.FORWARD, cudnn.BACKWARD


def cuda_text(f: Callable[..., Any], *arguments: Any) -> str:
    """The program lowered for CUDA, as StableHLO."""
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in TARGETS]
    return jax.export.export(jax.jit(f), platforms=["cuda"], disabled_checks=checks)(*arguments).mlir_module()


def counts(text: str) -> tuple[int, int, int]:
    """The numbers of cuDNN forward calls, cuDNN backward calls, and loops in a program."""
    return *(len(re.findall(rf"@{re.escape(name)}\(", text)) for name in TARGETS), text.count("stablehlo.while")


def shapes(dtype: Any, *lead: int, tokens: int = 1024, size: int = 64) -> tuple[Any, ...]:
    """Query, key and value with grouped heads."""
    query, key = ((*lead, 2, tokens, heads, size) for heads in (8, 2))
    return tuple(jax.ShapeDtypeStruct(shape, np.dtype(jnp.dtype(dtype))) for shape in (query, key, key))
