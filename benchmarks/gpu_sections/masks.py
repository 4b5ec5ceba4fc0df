"""Attention that cuDNN can't express: masks, soft cap, alibi, dropout, float32; against dense XLA and FlexAttention.

Dense XLA is jax.nn's implementation or, for options it lacks (soft cap, dropout), `reference_attention`: two einsums
and a softmax in the same dtype. All cases but the last are in bfloat16. Each program is compared with the reference in
float32 before it is timed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from derivatives import KINDS
from timing import race, turns

from gpu_sections.programs import (
    BITS,
    BOUNDS,
    SLICE,
    compile_all,
    largest_error,
    not_run,
    random_data,
    reference,
    sliced,
    torch_contenders,
)
from gpu_sections.session import Session
from jaxai.attention import Causal, PrefixLM, Segments, SlidingWindow, alibi, dot_product_attention, reference_attention
from jaxai.attention.position import Alibi

SHAPE, DRY = (4, 4096, 16, 64), (2, 64, 4, 16)
FLEX = 1.3
"""Upper bound on jaxai's time relative to FlexAttention's."""


class Case(NamedTuple):
    """A mask or option, in the forms that jaxai, dense XLA and FlexAttention take, in addition to is_causal."""

    options: Callable[[int, int], dict[str, Any]]
    causal: bool = False
    pattern: Callable[[int], list[Any] | None] = lambda T: None
    """FlexAttention's pattern as a function of T; None if it has none."""
    dense: str = "mask"
    """Dense form: "mask" or "bias" of jax.nn, or "reference" for `reference_attention`."""
    dtype: str = "bfloat16"


def slopes(heads: int, all_heads: int) -> Alibi:
    """ALiBi with the slopes of the first ``heads`` of ``all_heads`` heads."""
    return Alibi(alibi(all_heads).slopes[:heads])


def packed(T: int) -> jax.Array:
    """Segment ids [1, T] of documents of T/8 tokens."""
    return jnp.arange(T, dtype=jnp.int32)[None] // (T // 8)


def cases(all_heads: int) -> dict[str, Case]:
    """The cases by name."""
    return {
        "window, both sides": Case(
            lambda T, N: {"mask": SlidingWindow(T // 16, T // 16)}, pattern=lambda T: ["window", T // 16, T // 16]
        ),
        "packed documents, causal": Case(
            lambda T, N: {"segment_ids": packed(T)}, causal=True, pattern=lambda T: ["segments", T // 8]
        ),
        "prefix": Case(lambda T, N: {"mask": PrefixLM(T // 4)}, pattern=lambda T: ["prefix", T // 4]),
        "soft cap, causal": Case(
            lambda T, N: {"logits_soft_cap": 30.0}, causal=True, pattern=lambda T: ["soft_cap", 30.0], dense="reference"
        ),
        "alibi, causal": Case(
            lambda T, N: {"score_mod": slopes(N, all_heads)},
            causal=True,
            pattern=lambda T: ["alibi", all_heads],
            dense="bias",
        ),
        "dropout, causal": Case(
            lambda T, N: {"dropout_rate": 0.1, "dropout_key": jax.random.key(3)}, causal=True, dense="reference"
        ),
        "float32, causal": Case(lambda T, N: {}, causal=True, pattern=lambda T: [None], dtype="float32"),
    }


def run(session: Session) -> None:
    """Compare every case with dense XLA, then with FlexAttention, which takes long to compile."""
    shape = DRY if session.dry else SHAPE
    found = {}
    for name, case in cases(shape[2]).items():
        if session.enough(8, name):
            with session.guarded(name):
                found[name] = against_dense(session, name, case, shape)
    with session.peer("torch_attention.py") as torch:
        for name, (contenders, data, wanted) in found.items() if torch else ():
            case, what = cases(shape[2])[name], f"{name} {list(shape)}"
            pattern = case.pattern(shape[1])
            if pattern is None:
                not_run(session, what, {"FlexAttention": "it has no dropout"})
                continue
            if not session.enough(15, f"{what} against FlexAttention"):
                continue
            with session.guarded(f"{what} against FlexAttention"):
                call = {"pattern": pattern if pattern[0] else None, "causal": case.causal}
                theirs = torch_contenders(session, torch, ["flex"], data, wanted, what=what, **call)
                for kind, turn in contenders.items():
                    if "flex" in theirs[kind]:
                        seconds = race({"jaxai": turn, "flex": theirs[kind]["flex"]}, **session.timing)
                        ratios = [a / b for a, b in zip(seconds["jaxai"], seconds["flex"], strict=True)]
                        detail = f"FlexAttention {1e3 * min(seconds['flex']):.4g} ms"
                        told = f"{kind}, {what}, time over FlexAttention's"
                        session.row(told, values=ratios, wanted=("<=", FLEX), detail=detail)


def options(case: Case, tokens: int, heads: int) -> dict[str, Any]:
    """The arguments of `dot_product_attention`."""
    return case.options(tokens, heads) | ({"is_causal": True} if case.causal else {})


def dense(case: Case, tokens: int, heads: int) -> tuple[Callable[..., jax.Array], Any]:
    """The dense program as f(q, k, v, extra), and extra: the mask or bias, an input so that it isn't a constant."""
    given = options(case, tokens, heads)
    if case.dense == "reference":
        return lambda q, k, v, extra: reference_attention(q, k, v, **given), None
    attend = partial(jax.nn.dot_product_attention, implementation="xla")
    if case.dense == "bias":
        distance = jnp.abs(jnp.arange(tokens)[:, None] - jnp.arange(tokens))
        bias = -alibi(heads).slopes[:, None, None] * distance[None].astype(jnp.float32)
        return lambda q, k, v, extra: attend(q, k, v, bias=extra, is_causal=True), bias[None].astype(case.dtype)
    mask = given.get("mask") or Causal()
    if "segment_ids" in given:
        mask = Causal() & Segments(given["segment_ids"], given["segment_ids"])
    return lambda q, k, v, extra: attend(q, k, v, mask=extra), mask.materialize(tokens, tokens)


def against_dense(session: Session, name: str, case: Case, shape: tuple[int, int, int, int]) -> tuple[Any, Any, Any]:
    """Check numerics, then time each kind; return jaxai's turns, the data and the reference results."""
    _, tokens, heads, _ = shape
    ours, some = options(case, tokens, heads), options(case, tokens, SLICE)
    attend, extra = dense(case, tokens, heads)
    data = random_data(shape, jnp.dtype(case.dtype))
    programs = {}
    for kind in ("forward", "gradient"):
        mine = partial(KINDS[kind], lambda q, k, v, extra: dot_product_attention(q, k, v, **ours))
        programs[f"{kind} jaxai"] = mine, data
        programs[f"{kind} dense"] = partial(KINDS[kind], attend), data._replace(segments=extra)
    made, wanted, kept = compile_all(programs), {}, {}
    for kind in ("forward", "gradient"):
        what = f"{kind}, {name} {list(shape)}"
        wanted[kind] = reference(kind, lambda q, k, v, extra: reference_attention(q, k, v, **some), data)
        contenders = {}
        for who in ("jaxai", "dense"):
            found = made[f"{kind} {who}"]
            try:
                if isinstance(found, Exception):
                    raise RuntimeError(str(found)) from found
                argument = programs[f"{kind} {who}"][1]
                error = largest_error(sliced(found[0](argument)), wanted[kind])
            except RuntimeError as failure:  # such as out of memory
                if who == "jaxai":
                    raise
                not_run(session, what, {"dense XLA": failure})
                continue
            if session.verified(f"{what}, {who}: error", error, BOUNDS[kind] * BITS[case.dtype]):
                contenders[who] = turns(found[0], argument)
        if "jaxai" not in contenders:
            continue
        kept[kind] = contenders["jaxai"]
        seconds = race(contenders, **session.timing)
        session.row(what, unit="ms", values=[1e3 * x for x in seconds["jaxai"]])
        if "dense" in seconds:
            ratios = [a / b for a, b in zip(seconds["jaxai"], seconds["dense"], strict=True)]
            detail = f"dense {1e3 * min(seconds['dense']):.4g} ms"
            session.row(f"{what}, time over dense XLA's", values=ratios, wanted=("<=", 1.0), detail=detail)
    return kept, data, wanted
