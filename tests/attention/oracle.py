"""An independent attention for the tests, and the cases that are compared with it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxai.attention import (
    Causal,
    Chunked,
    FunctionMask,
    Lengths,
    PrefixLM,
    SlidingWindow,
    dot_product_attention,
)


def attention(query, key, value, *, bias=None, visible=None, scale=None, soft_cap=None, score_mod=None, **softmax):
    """Output [B, T, N, V] and log-sum-exp [B, T, N]: `visible` bools that broadcast to the scores."""
    (B, T, N, H), (S, K) = query.shape, key.shape[1:3]
    key, value = (jnp.stack([x[:, :, n * K // N] for n in range(N)], 2) for x in (key, value))
    scores = jnp.einsum("bqnh,bknh->bnqk", query, key) * (H**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if score_mod is not None:
        scores = score_mod(scores, *np.ogrid[:B, :N, :T, :S])
    visible = jnp.broadcast_to(True if visible is None else visible, scores.shape)
    if bias is not None:
        bias = jnp.broadcast_to(bias, scores.shape)
        visible = visible & (bias > -jnp.inf)
        scores = scores + jnp.where(visible, bias, 0)
    return softmax_values(jnp.where(visible, scores, 0), visible, value, **softmax)


def softmax_values(scores, visible, value, *, sinks=None, dropout_mask=None):
    """The part after the masks; a sink is one more term of the softmax's sum.

    `dropout_mask` [B, N, T, S] multiplies the weights.
    """
    terms = jnp.where(visible, jnp.exp(scores), 0)  # no maximum is taken out: the scores of these tests are small
    total = terms.sum(-1)
    if sinks is not None:
        total = total + jnp.exp(sinks)[None, :, None]
    some = total > 0
    safe = jnp.where(some, total, 1)
    weights = terms / safe[..., None] * (1 if dropout_mask is None else dropout_mask)
    lse = jnp.where(some, jnp.log(safe), -jnp.inf)
    return jnp.einsum("bnqk,bknv->bqnv", weights, value), lse.swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class Case:
    """A call: its sizes, its options, the entries they show, and float arguments other than query, key and value.

    `rule(b, n, q, k)` gets NumPy indices; `extra` are shapes of bias and sinks, `slope` (of `score_mod`) and `scale`.
    """

    sizes: tuple[int, int, int, int, int, int, int]  # B, T, S, K, N / K, H, V
    options: Callable[[], dict[str, Any]] = dict
    rule: Callable[..., Any] | None = None
    extra: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    hidden_bias: bool = False

    def draw(self, seed: int = 0, dtype: Any = "float64") -> dict[str, Any]:
        """Normal numbers; with `hidden_bias` the bias hides its first key and, where it has queries, its second."""
        B, T, S, K, G, H, V = self.sizes
        shapes = {"query": (B, T, K * G, H), "key": (B, S, K, H), "value": (B, S, K, V), **self.extra}
        rng = np.random.default_rng(seed)
        arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        if self.hidden_bias:
            arrays["bias"][..., 0] = -np.inf
            if arrays["bias"].shape[2] > 1:
                arrays["bias"][:, :, 1] = -np.inf
        return {name: jnp.asarray(x, dtype) for name, x in arrays.items()}

    def directions(self, seed: int) -> dict[str, Any]:
        """Tangents of the arrays."""
        return dataclasses.replace(self, hidden_bias=False).draw(seed)

    @property
    def visible(self) -> Any:
        """[B, N, T, S] of NumPy."""
        B, T, S, K, G, _, _ = self.sizes
        shape = (B, K * G, T, S)
        return (
            np.ones(shape, bool)
            if self.rule is None
            else np.broadcast_to(self.rule(*np.ogrid[*map(slice, shape)]), shape)
        )

    def expected(self, arrays: dict[str, Any]) -> tuple[Any, Any]:
        """The oracle's result."""
        options = dict(self.options())
        more = {"soft_cap": options.get("logits_soft_cap"), "score_mod": scaled_distance(arrays)}
        arrays = {name: x for name, x in arrays.items() if name != "slope"}
        return attention(**arrays, **more, visible=self.visible)

    def call(self, arrays: dict[str, Any], **how: Any) -> tuple[Any, Any]:
        """The package's result."""
        arrays, score_mod = {name: x for name, x in arrays.items() if name != "slope"}, scaled_distance(arrays)
        return dot_product_attention(**arrays, **self.options(), **how, score_mod=score_mod, return_residual=True)


def scaled_distance(arrays):
    """A score function with an array inside, or None."""
    if "slope" not in arrays:
        return None
    slope = arrays["slope"]
    return lambda score, b, n, q, k: score * (1 + 0.1 * n + 0.05 * b) - slope[n] * jnp.sin(q - 0.5 * k)


def ragged_ids(lengths: list[int]) -> Any:
    """Segment ids 1, 2, ... [1, T]."""
    return np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)[None]


rng = np.random.default_rng(7)
RANDOM = rng.random((2, 1, 10, 19)) < 0.6
RANDOM[0, 0, 3] = False  # a query that sees nothing
RANDOM[1, 0, :, 5] = False  # a key that nobody sees
KEYS = rng.random((4, 1, 13)) < 0.5
KEYS[2] = False  # a head that sees nothing
Q_IDS = np.concatenate([ragged_ids([4, 9, 5]), ragged_ids([11, 3, 4])])
K_IDS = np.concatenate([ragged_ids([5, 2, 10]), ragged_ids([9, 4, 4]) + 1])

CASES = {
    "plain": Case((2, 12, 12, 2, 1, 4, 4)),
    "causal, more queries, groups": Case(
        (2, 19, 10, 2, 2, 4, 3), lambda: {"is_causal": True}, lambda b, n, q, k: k <= q
    ),
    "causal, more keys, one key head": Case(
        (2, 10, 19, 1, 3, 4, 5), lambda: {"is_causal": True}, lambda b, n, q, k: k <= q
    ),
    "window": Case(
        (1, 18, 20, 1, 2, 3, 4), lambda: {"local_window_size": (4, 2)}, lambda b, n, q, k: (k >= q - 4) & (k <= q + 2)
    ),
    "causal window, last queries see nothing": Case(
        (1, 20, 9, 2, 1, 3, 3),
        lambda: {"local_window_size": 3, "is_causal": True},
        lambda b, n, q, k: (k >= q - 3) & (k <= q),
    ),
    "segments": Case(
        (2, 18, 17, 2, 1, 4, 4),
        lambda: {"segment_ids": (jnp.asarray(Q_IDS), jnp.asarray(K_IDS))},
        lambda b, n, q, k: Q_IDS[b, q] == K_IDS[b, k],
    ),
    "lengths": Case(
        (3, 11, 13, 1, 2, 4, 4),
        lambda: {"query_seq_lengths": jnp.array([11, 7, 5]), "key_value_seq_lengths": jnp.array([13, 4, 0])},
        lambda b, n, q, k: (q < np.array([11, 7, 5])[b]) & (k < np.array([13, 4, 0])[b]),
    ),
    "array mask": Case((2, 10, 19, 1, 2, 4, 4), lambda: {"mask": RANDOM}, lambda b, n, q, k: RANDOM[b, 0, q, k]),
    "key mask of each head": Case(
        (2, 9, 13, 2, 2, 4, 4), lambda: {"mask": jnp.asarray(KEYS)}, lambda b, n, q, k: KEYS[n, 0, k]
    ),
    "function mask": Case(
        (2, 12, 18, 2, 1, 4, 4),
        lambda: {"mask": FunctionMask(lambda b, n, q, k: (q + 2 * k) % (3 + n) > b)},
        lambda b, n, q, k: (q + 2 * k) % (3 + n) > b,
    ),
    "combination": Case(
        (2, 18, 19, 1, 2, 4, 4),
        lambda: {
            "mask": (Causal(jnp.array([1, 3])) & ~Chunked(6) | PrefixLM(2)) & SlidingWindow(None, 12),
            "key_value_seq_lengths": jnp.array([19, 15]),
        },
        lambda b, n, q, k: (
            ((k - q <= np.array([1, 3])[b]) & (q // 6 != k // 6) | (k < 2) | (k <= q))
            & (k <= q + 12)
            & (k < np.array([19, 15])[b])
        ),
    ),
    "lengths of a mask and an argument": Case(
        (2, 9, 12, 1, 1, 4, 4),
        lambda: {"mask": Lengths(8, jnp.array([5, 12])), "key_value_seq_lengths": jnp.array([12, 7])},
        lambda b, n, q, k: (q < 8) & (k < np.array([5, 7])[b]),
    ),
    "one query": Case((2, 1, 18, 2, 2, 4, 4)),
    "one key": Case((2, 12, 1, 2, 1, 4, 4), lambda: {"is_causal": True}, lambda b, n, q, k: k <= q),
    "bias": Case((2, 9, 17, 1, 2, 4, 4), extra={"bias": (2, 2, 9, 17)}, hidden_bias=True),
    "bias of keys": Case((2, 9, 12, 1, 2, 4, 4), extra={"bias": (2, 1, 1, 12)}, hidden_bias=True),
    "bias of queries": Case((2, 12, 9, 1, 2, 4, 4), extra={"bias": (2, 12, 1)}),
    "soft cap": Case((1, 12, 9, 1, 2, 4, 4), lambda: {"logits_soft_cap": 0.7}),
    "score function": Case((2, 12, 9, 1, 2, 4, 4), extra={"slope": (2,)}),
    "sinks": Case(
        (2, 12, 9, 1, 2, 4, 4),
        lambda: {"key_value_seq_lengths": jnp.array([9, 0])},
        lambda b, n, q, k: k < np.array([9, 0])[b],
        extra={"sinks": (2,)},
    ),
    "scale": Case((1, 12, 9, 1, 2, 4, 4), extra={"scale": ()}),
    "everything": Case(
        (2, 18, 19, 2, 2, 4, 3),
        lambda: {
            "mask": SlidingWindow(9, 3) | PrefixLM(2),
            "segment_ids": (jnp.asarray(Q_IDS), jnp.asarray(ragged_ids([5, 2, 12]))),
            "logits_soft_cap": 1.5,
        },
        lambda b, n, q, k: (
            ((k >= q - 9) & (k <= q + 3) | (k < 2) | (k <= q)) & (Q_IDS[b, q] == ragged_ids([5, 2, 12])[0, k])
        ),
        extra={"bias": (1, 4, 18, 19), "sinks": (4,), "slope": (4,), "scale": ()},
        hidden_bias=True,
    ),
}

SETTINGS = {
    "reference": {"implementation": "reference"},
    "small blocks": {"implementation": "blockwise", "block_size": (4, 5)},
    "one block": {"implementation": "blockwise", "block_size": 64},
    "default": {},
}


def compiled(f: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` without optimisation: compiling takes a third of the time, and the tests compute little."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0}, **options)


def scaled(desired: Any) -> float:
    """The greatest finite magnitude of an array, to which float64 tolerances are relative."""
    desired = np.asarray(desired)
    return float(np.abs(desired, where=np.isfinite(desired), out=np.zeros(desired.shape)).max(initial=1.0))


def assert_close(actual: Any, desired: Any, tolerance: float = 1e-10) -> None:
    """Assert that trees are equal within a tolerance, also where they are -inf, and have no NaN."""
    leaves = jax.tree.leaves_with_path(desired)
    for (path, want), have in zip(leaves, jax.tree.leaves(actual), strict=True):
        name, tolerance_here = jax.tree_util.keystr(path), tolerance * scaled(want)
        np.testing.assert_allclose(have, want, rtol=0, atol=tolerance_here, equal_nan=False, err_msg=name)


IMPLEMENTATIONS = ["reference", "blockwise"]
TOLERANCE = 3e-6  # float32: sums of some 20 terms of size 1, in another order


def draw(*sizes, dtype="float32", seed=0):
    """Query, key and value for the sizes B, T, S, K, N / K, H, V."""
    arrays = Case(sizes).draw(seed, dtype)
    return arrays["query"], arrays["key"], arrays["value"]


def normal(*shape):
    return np.random.default_rng(11).standard_normal(shape).astype("float32")


def some(*shape):
    """Bools with the first key visible: for a query that sees no key, jax.nn gives the mean of the values."""
    return (np.random.default_rng(11).random(shape) < 0.6) | (np.arange(shape[-1]) == 0)


def energy(run):
    """A function of the output and of the log-sum-exp, smooth also where that is -inf."""

    def value(*arrays):
        out, lse = run(*arrays)
        return jnp.sin(out).sum() + jnp.exp(0.3 * lse).sum()

    return value


QUERY, KEY, VALUE = (2, 9, 4, 8), (2, 12, 2, 8), (2, 12, 2, 6)


def call(query=QUERY, key=KEY, value=VALUE, **options):
    query, key, value = (jnp.zeros(x) if isinstance(x, tuple) else x for x in (query, key, value))
    return dot_product_attention(query, key, value, **options)
