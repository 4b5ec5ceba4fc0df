"""Numerics of the default implementation in bfloat16 and float16 against the dense reference in float32.

Masks, bias, sinks, soft cap, dropout, odd lengths, grouped heads, head sizes; output, log-sum-exp and gradient of every
case under jit, and of some also without jit and through jvp, Hessian-vector product, vmap, scan and remat. The
reference uses the same rounded inputs and float32 products (a GPU's default is TF32).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpu_sections.programs import BITS, BOUNDS, compile_all, exact, largest_error
from gpu_sections.session import NOT_RUN, Session
from jaxai.attention import PrefixLM, Segments, SlidingWindow, alibi, dot_product_attention, reference_attention

Attend = Callable[..., Any]
Arrays = tuple[jax.Array, ...]


class Case(NamedTuple):
    """The sizes of a call, and its options as a function of B, T, S, N."""

    heads: tuple[int, int, int] = (4, 4, 64)
    """N, K, H."""
    tokens: tuple[int, int] = (1024, 1024)
    """T, S."""
    options: Callable[[int, int, int, int], dict[str, Any]] = lambda B, T, S, N: {}
    blind: bool = False
    """Some queries attend to no key: their log-sum-exp is -inf and is not compared."""


def causal(B: int, T: int, S: int, N: int) -> dict[str, Any]:
    return {"is_causal": True}


def ids(B: int, T: int) -> np.ndarray:
    """Segment ids [B, T] of packed documents, whose lengths differ between rows."""
    return np.stack([np.arange(T) // (T // (3 + b) + 1) for b in range(B)]).astype(np.int32)


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape)


def padding(B: int, T: int, S: int, N: int) -> dict[str, Any]:
    lengths = {"query_seq_lengths": T, "key_value_seq_lengths": S}
    return {name: jnp.array([size - 5, size // 3][:B], jnp.int32) for name, size in lengths.items()}


def everything(B: int, T: int, S: int, N: int) -> dict[str, Any]:
    mask = SlidingWindow(T // 3, T // 9) & Segments(ids(B, T), ids(B, S)) | PrefixLM(T // 20)
    return {"mask": mask, "sinks": normal(N), "logits_soft_cap": 20.0, "score_mod": alibi(N)}


CASES = {
    "causal": Case(options=causal),
    "full": Case(),
    "everything at once, grouped heads, odd length": Case((8, 2, 64), (777, 777), everything),
    "causal, heads of 128": Case((4, 4, 128), options=causal),
    "full, heads of 128": Case((4, 4, 128)),
    "causal, heads of 256": Case((2, 2, 256), options=causal),
    "causal, heads of 80": Case((4, 4, 80), options=causal),
    "full, heads of 37": Case((2, 2, 37)),
    "causal, odd length": Case(tokens=(777, 777), options=causal),
    "full, odd lengths": Case(tokens=(333, 1021)),
    "causal, grouped heads": Case((8, 2, 64), options=causal),
    "full, one head of keys, odd length": Case((8, 1, 128), (777, 777)),
    "causal window": Case(options=lambda B, T, S, N: {"is_causal": True, "local_window_size": (T // 10, 0)}),
    "window on both sides": Case(options=lambda B, T, S, N: {"local_window_size": (T // 10, T // 20)}),
    "causal segments": Case(options=lambda B, T, S, N: {"is_causal": True, "segment_ids": ids(B, T)}),
    "segments": Case(options=lambda B, T, S, N: {"segment_ids": ids(B, T)}),
    "lengths": Case(options=padding, blind=True),
    "causal, lengths": Case(options=lambda *sizes: padding(*sizes) | causal(*sizes), blind=True),
    "sinks": Case(options=lambda B, T, S, N: {"sinks": normal(N)}),
    "causal, sinks": Case(options=lambda B, T, S, N: {"is_causal": True, "sinks": normal(N)}),
    "causal, soft cap": Case(options=lambda B, T, S, N: {"is_causal": True, "logits_soft_cap": 2.0}),
    "bias of every score": Case(options=lambda B, T, S, N: {"bias": normal(1, N, T, S)}),
    "causal, bias of keys": Case(options=lambda B, T, S, N: {"is_causal": True, "bias": normal(B, 1, 1, S)}),
    "mask as an array": Case(options=lambda B, T, S, N: {"mask": normal(B, 1, T, S) > 0}),
    "prefix": Case(options=lambda B, T, S, N: {"mask": PrefixLM(T // 4)}),
    "causal, alibi": Case(options=lambda B, T, S, N: {"is_causal": True, "score_mod": alibi(N)}),
    "causal, dropout": Case(
        options=lambda B, T, S, N: {"is_causal": True, "dropout_rate": 0.2, "dropout_key": jax.random.key(2)}
    ),
}
DRY = ("causal", "everything at once, grouped heads, odd length", "lengths")
TRANSFORMED = ("causal", "full", "everything at once, grouped heads, odd length")
"""Cases that are also tested through jvp, Hessian-vector product, vmap, scan and remat."""
BATCH = 2


def run(session: Session) -> None:
    """Check every case in bfloat16, then the transformations, then float16; when time runs out, the rest is one row."""
    names = [name for name in CASES if not session.dry or name in DRY]
    jobs = {f"{name}, bfloat16": (name, "bfloat16", "gradient") for name in names}
    others = ("eager", "hvp") if session.dry else ("eager", "jvp", "hvp", "vmap", "scan", "remat")
    for kind in others:
        jobs |= {
            f"{kind}, {name}, bfloat16": (name, "bfloat16", kind) for name in TRANSFORMED[: 1 if session.dry else 3]
        }
    jobs |= {f"{name}, float16": (name, "float16", "gradient") for name in names[: 1 if session.dry else None]}
    left, size = list(jobs.items()), 8
    while left:
        some, left = left[:size], left[size:]
        if session.left < 15 and not session.dry:
            session.row(f"{len(some) + len(left)} cases from {some[0][0]} on", status=NOT_RUN, detail="no time is left")
            return
        check(session, dict(some))


def check(session: Session, jobs: dict[str, tuple[str, str, str]]) -> None:
    """Compile some cases in parallel, then compare each with the reference."""
    programs: dict[str, tuple[Callable[..., Any], Any]] = {}
    for what, (name, dtype, kind) in jobs.items():
        arrays, options, case = prepared(session, name, dtype)
        floats = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
        first = "gradient" if kind in ("eager", "scan", "remat", "vmap") else kind
        programs[f"{what}: reference"] = exact(partial(KINDS[first], reference_attention, options, case.blind)), floats
        if kind == "scan":
            programs[f"{what}: reference"] = exact(partial(layers, reference_attention, options, False)), floats
        if kind != "eager":
            programs[what] = partial(KINDS[kind], dot_product_attention, options, case.blind), arrays
    made = compile_all(programs)
    for what, (name, dtype, kind) in jobs.items():
        with session.guarded(what):
            arrays, options, case = prepared(session, name, dtype)
            results = []
            for key, operands in ((what, arrays), (f"{what}: reference", programs[f"{what}: reference"][1])):
                if key not in made:
                    results.append(gradient(dot_product_attention, options, case.blind, operands))
                    continue
                found = made[key]
                if isinstance(found, Exception):
                    raise RuntimeError(str(found)) from found
                results.append(found[0](operands))
            got, wanted = (jax.tree.leaves(x) for x in results)
            order = "hvp" if kind == "hvp" else "gradient"
            bound = BOUNDS[order] * BITS[dtype] * (2 if kind == "scan" else 1)  # two layers in sequence
            error = largest_error(got, wanted)
            if session.verified(what, error, bound, "error, relative to the largest entry"):
                session.row(what, error, wanted=("<=", bound), status="within")


def prepared(session: Session, name: str, dtype: str) -> tuple[Any, dict[str, Any], Case]:
    """The operands ((q, k, v), w, direction), the call's options, and its case."""
    case = CASES[name]
    N, K, H = case.heads
    T, S = (size // 20 for size in case.tokens) if session.dry else case.tokens
    shapes = [(BATCH, T, N, H), (BATCH, S, K, H), (BATCH, S, K, H)]
    shapes = [*shapes, (BATCH, T, N, H), *shapes]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    q, k, v, w, *direction = (jax.random.normal(key, s, dtype) for key, s in zip(keys, shapes, strict=True))
    return ((q, k, v), w, tuple(direction)), case.options(BATCH, T, S, N), case


# The compared functions; arguments: implementation, options, blind (as in Case), and ((q, k, v), w, direction).


def gradient(attend: Attend, options: dict[str, Any], blind: bool, operands: Any) -> Any:
    """Output, log-sum-exp, and the gradient of a scalar function of both."""
    qkv, w, _ = operands

    def weighted_sum(qkv: Arrays) -> tuple[jax.Array, Any]:
        if blind:
            out = attend(*qkv, **options)
            return jnp.sum(out * w, dtype=jnp.float32), out
        out, lse = attend(*qkv, **options, return_residual=True)
        return jnp.sum(out * w, dtype=jnp.float32) + jnp.sin(lse).sum(), (out, lse)

    grads, out = jax.grad(weighted_sum, has_aux=True)(qkv)
    return out, grads


def jvp(attend: Attend, options: dict[str, Any], blind: bool, operands: Any) -> Any:
    """Output and its derivative along the direction."""
    qkv, _, direction = operands
    return jax.jvp(lambda *qkv: attend(*qkv, **options), qkv, direction)


def hvp(attend: Attend, options: dict[str, Any], blind: bool, operands: Any) -> Any:
    """The gradient's derivative along the direction."""
    qkv, w, direction = operands
    return jax.jvp(lambda *qkv: gradient(attend, options, blind, (qkv, w, direction)), qkv, direction)[1]


def vmap(attend: Attend, options: dict[str, Any], blind: bool, operands: Any) -> Any:
    """The gradient of two equal examples under vmap; return the first."""
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), operands)
    return jax.tree.map(lambda x: x[0], jax.vmap(partial(gradient, attend, options, blind))(twice))


def remat(attend: Attend, options: dict[str, Any], blind: bool, operands: Any) -> Any:
    """The gradient with a rematerialized forward pass."""

    def again(*qkv: jax.Array, **more: Any) -> Any:
        return jax.checkpoint(lambda *qkv: attend(*qkv, **options, **more))(*qkv)

    return gradient(again, {}, blind, operands)


def layers(attend: Attend, options: dict[str, Any], loop: bool, operands: Any) -> Any:
    """The gradient through two residual layers, each layer's output the next one's queries, by lax.scan or unrolled."""
    (q, k, v), w, _ = operands

    def layer(x: jax.Array, keys: jax.Array) -> tuple[jax.Array, None]:
        return x + attend(x, keys, v, **options), None

    def loss(q: jax.Array, keys: jax.Array) -> jax.Array:
        if loop:
            x, _ = jax.lax.scan(layer, q, keys)
        else:
            x = layer(layer(q, keys[0])[0], keys[1])[0]
        return jnp.sum(x * w, dtype=jnp.float32)

    return jax.grad(loss, (0, 1))(q, jnp.stack([k, k[:, ::-1]]))


def scan(attend: Attend, options: dict[str, Any], blind: bool, operands: Any) -> Any:
    return layers(attend, options, True, operands)


KINDS = {"gradient": gradient, "jvp": jvp, "hvp": hvp, "vmap": vmap, "remat": remat, "scan": scan}
