"""Attention at random: sizes, masks, options, types and derivatives drawn by hypothesis, against the oracle."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jaxai.attention import (
    ArrayMask,
    Causal,
    Chunked,
    FunctionMask,
    Lengths,
    PrefixLM,
    Segments,
    SlidingWindow,
    dot_product_attention,
)
from tests.attention.oracle import Case, assert_close, attention, compiled, scaled, scaled_distance

SIZES = [  # B, T, S, K, N / K, H, V: few, as each is compiled
    (2, 9, 9, 1, 1, 2, 2),
    (1, 17, 11, 2, 1, 3, 2),
    (2, 6, 20, 1, 3, 2, 3),
    (1, 1, 13, 2, 2, 2, 2),
    (2, 12, 1, 1, 2, 1, 4),
    (3, 19, 18, 1, 1, 2, 1),
]
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A mask as an expression: a name with numbers, or an operator with parts."""

    name: str
    parts: tuple[Any, ...]

    def mask(self, B, T, S):
        """The package's mask, or a bool array."""
        if self.name in OPERATORS:
            masks = [part.mask(B, T, S) for part in self.parts]
            return OPERATORS[self.name](*(ArrayMask(x) if isinstance(x, np.ndarray) else x for x in masks))
        return MASKS[self.name](*self.parts, B, T, S)

    def visible(self, B, T, S, *indices):
        """The visible entries, NumPy bools [B, 1, T, S]."""
        if self.name in OPERATORS:
            return OPERATORS[self.name](*(part.visible(B, T, S, *indices) for part in self.parts))
        return np.broadcast_to(RULES[self.name](*self.parts, B, T, S, *indices), (B, 1, T, S))


OPERATORS = {"and": lambda x, y: x & y, "or": lambda x, y: x | y, "not": lambda x: ~x}


def numbers(seed, *shape):
    return np.random.default_rng(seed).integers(0, 20, shape).astype(np.int32)


MASKS = {  # how the package says it: two integers x, y, then the sizes
    "causal": lambda x, y, B, T, S: Causal(x - 5),
    "causal of each row": lambda x, y, B, T, S: Causal(jnp.asarray(numbers(x, B) - 5)),
    "window": lambda x, y, B, T, S: SlidingWindow(x, None if y > 10 else y),
    "prefix": lambda x, y, B, T, S: PrefixLM(x),
    "chunks": lambda x, y, B, T, S: Chunked(1 + x),
    "segments": lambda x, y, B, T, S: Segments(numbers(x, B, T) // 7, jnp.asarray(np.sort(numbers(y, B, S) // 7))),
    "lengths": lambda x, y, B, T, S: Lengths(jnp.asarray(numbers(x, B)), y),
    "array": lambda x, y, B, T, S: (numbers(x, B, 1, T, S) > 4) & (numbers(y, T, 1) > 1)[None, None],
    "keys": lambda x, y, B, T, S: numbers(x, S) > 9,
    "function": lambda x, y, B, T, S: FunctionMask(lambda b, n, q, k: (q + k + b) % (1 + x) != y % (1 + x)),
}
RULES = {  # the same, entry by entry
    "causal": lambda x, y, B, T, S, b, q, k: k <= q + x - 5,
    "causal of each row": lambda x, y, B, T, S, b, q, k: k <= q + numbers(x, B)[b] - 5,
    "window": lambda x, y, B, T, S, b, q, k: (k >= q - x) & (k <= q + (99 if y > 10 else y)),
    "prefix": lambda x, y, B, T, S, b, q, k: (k < x) | (k <= q),
    "chunks": lambda x, y, B, T, S, b, q, k: q // (1 + x) == k // (1 + x),
    "segments": lambda x, y, B, T, S, b, q, k: (numbers(x, B, T) // 7)[b, q] == np.sort(numbers(y, B, S) // 7)[b, k],
    "lengths": lambda x, y, B, T, S, b, q, k: (q < numbers(x, B)[b]) & (k < y),
    "array": lambda x, y, B, T, S, b, q, k: (numbers(x, B, 1, T, S)[b, 0, q, k] > 4) & (numbers(y, T, 1)[q, 0] > 1),
    "keys": lambda x, y, B, T, S, b, q, k: numbers(x, S)[k] > 9,
    "function": lambda x, y, B, T, S, b, q, k: (q + k + b) % (1 + x) != y % (1 + x),
}


def unary(parts):
    return st.builds(lambda part: Rule("not", (part,)), parts)


def binary(parts):
    return st.builds(lambda name, x, y: Rule(name, (x, y)), st.sampled_from(["and", "or"]), parts, parts)


small = st.integers(0, 19)
rules = st.recursive(
    st.builds(lambda name, x, y: Rule(name, (x, y)), st.sampled_from(sorted(MASKS)), small, small),
    lambda parts: unary(parts) | binary(parts),
    max_leaves=3,
)


@st.composite
def calls(draw):
    """(case without options, options of a call, options of the oracle, the setting, the type)."""
    B, T, S, K, G, _, _ = sizes = draw(st.sampled_from(SIZES))
    N = K * G
    axes = [draw(st.sampled_from([1, size])) for size in (B, N, T, S)]
    shapes = {"bias": tuple(axes), "sinks": (N,), "slope": (N,), "scale": ()}
    extra = {name: shape for name, shape in shapes.items() if draw(st.integers(0, 2)) == 0}
    rule = draw(st.none() | rules)
    options = {
        "is_causal": draw(st.integers(0, 3)) == 0,
        "local_window_size": draw(st.sampled_from([None, None, None, 6, (3, 1)])),
        "key_value_seq_lengths": draw(st.sampled_from([None, None, [13, 0, 5], [1, 20, 7]])),
        "logits_soft_cap": draw(st.sampled_from([None, None, 0.5, 3])),
    }
    implementation = draw(st.sampled_from(["reference", *["blockwise"] * 3, None]))
    how = {"implementation": implementation, "block_size": draw(st.sampled_from([None, 1, 8, (4, 5), (16, 8)]))}
    dtype = draw(st.sampled_from(["float64", "float64", "float32"]))
    return Case(sizes, extra=extra), rule, options, how, dtype, draw(st.sampled_from(DERIVATIVES)), draw(small)


DERIVATIVES = ["grad", "jvp", "hvp", "penalty", "third"]


def differentiated(name, f, arrays, tangents):
    """Output, log-sum-exp, and one derivative of a function of both."""

    def value(arrays):
        out, lse = f(arrays)
        return jnp.sin(out).sum() + jnp.exp(0.3 * lse).sum()

    def along(function):
        return lambda arrays: jax.jvp(function, (arrays,), (tangents,))[1]

    gradient = jax.grad(value)
    penalty = jax.grad(lambda arrays: sum((x**2).sum() for x in gradient(arrays).values()))
    of = {
        "grad": gradient,
        "jvp": along(f),
        "hvp": along(gradient),
        "penalty": penalty,
        "third": along(along(gradient)),
    }
    return f(arrays), of[name](arrays)


def error(actual, desired):
    """The greatest error of any array, relative to its greatest finite magnitude."""
    pairs = zip(*(map(np.asarray, jax.tree.leaves(x)) for x in (actual, desired)), strict=True)
    return max(
        np.abs(np.subtract(x, y, where=np.isfinite(y), out=np.zeros(y.shape))).max(initial=0) / scaled(y)
        for x, y in pairs
    )


@pytest.mark.parametrize("examples", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_equals_the_oracle(examples):
    # Each example compiles for seconds, so a failing one is not shrunk: that takes hypothesis its five minutes.
    few = settings(max_examples=examples, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    few(given(calls())(check))()


def check(call):
    """Output, log-sum-exp and a derivative; no gradient for masked entries, whatever their values."""
    case, rule, options, how, dtype, derivative, seed = call
    B, T, S, K, G, _, _ = case.sizes
    b, _, q, k = np.ogrid[:B, :1, :T, :S]
    visible = np.ones((B, 1, T, S), bool)
    if rule is not None:
        visible &= rule.visible(B, T, S, b, q, k)
    if options["is_causal"]:
        visible &= k <= q
    if options["local_window_size"]:
        window = options["local_window_size"]
        left, right = (window, window) if isinstance(window, int) else window
        visible &= (k >= q - left) & (k <= q + right)
    lengths = options["key_value_seq_lengths"]
    if lengths:
        lengths = np.array(lengths[:B], np.int32)
        visible &= k < lengths[b]
    visible = np.broadcast_to(visible, (B, K * G, T, S))

    def arguments(arrays):
        return {key: x for key, x in arrays.items() if key != "slope"} | {"score_mod": scaled_distance(arrays)}

    def ours(arrays):
        mask = None if rule is None else rule.mask(B, T, S)
        more = options | how | {"mask": mask, "key_value_seq_lengths": lengths}
        return dot_product_attention(**arguments(arrays), **more, return_residual=True)

    def theirs(arrays):
        return attention(**arguments(arrays), visible=visible, soft_cap=options["logits_soft_cap"])

    with jax.enable_x64(True):
        arrays, tangents = case.draw(seed), case.draw(seed + 1)
        if dtype == "float32":  # the same numbers for both
            arrays, tangents = jax.tree.map(lambda x: x.astype(dtype).astype("float64"), (arrays, tangents))
        oracle = compiled(functools.partial(differentiated, derivative, theirs))
        desired = oracle(arrays, tangents)
        arrays, tangents = jax.tree.map(lambda x: x.astype(dtype), (arrays, tangents))
        program = compiled(functools.partial(differentiated, derivative, ours))
        actual = program(arrays, tangents)
        assert {x.dtype for x in jax.tree.leaves(actual)} == {np.dtype(dtype)}
        tolerance = TOLERANCE[dtype]
        if dtype == "float32":  # in a third derivative terms cancel: as much more as the oracle errs in float32 itself
            tolerance += 2 * error(oracle(arrays, tangents), desired)
        assert_close(actual, desired, tolerance)
        hidden = ~visible.any((1, 2))[..., None, None]
        poisoned = {name: jnp.where(hidden, jnp.nan, arrays[name]) for name in ("key", "value")}
        assert_close(program(arrays | poisoned, tangents), actual, tolerance)
