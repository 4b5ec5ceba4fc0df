"""Tokens/s of decoding into a nearly full cache: `KVCache`, a full forward pass per token, and PyTorch's attention."""

import jax
import jax.numpy as jnp
from timing import NotAvailable, Turn, build, race, turns

from gpu_sections.programs import BOUNDS, exact, largest_error
from gpu_sections.session import NOT_RUN, Session
from jaxai.attention import KVCache, dot_product_attention, reference_attention

SIZES, DRY = (8, 4096, 16, 64, 64), (2, 32, 2, 16, 4)
"""B, capacity, N, H, number of decoded tokens."""


def run(session: Session) -> None:
    """Check the output for the cache's last token, then time all contenders."""
    batch, capacity, heads, size, steps = DRY if session.dry else SIZES
    keys = jax.random.split(jax.random.key(0), 5)
    q, *new = (jax.random.normal(key, (batch, 1, heads, size), jnp.bfloat16) for key in keys[:3])
    prompt = [jax.random.normal(key, (batch, capacity - steps - 1, heads, size), jnp.bfloat16) for key in keys[3:]]
    empty = KVCache.init(batch, capacity, heads, size, dtype=jnp.bfloat16)
    filled = jax.jit(KVCache.update)(empty, *prompt)

    def step(cache: KVCache, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[KVCache, jax.Array]:
        cache = cache.update(k, v)
        return cache, cache.attend(q)  # pyright: ignore[reportReturnType]

    program = jax.jit(step, donate_argnums=0)
    _, got = program(jax.tree.map(jnp.copy, filled), q, *new)
    pairs = [jnp.concatenate(pair, 1).astype(jnp.float32) for pair in zip(prompt, new, strict=True)]
    wanted = jax.jit(exact(reference_attention))(q.astype(jnp.float32), *pairs)
    if not session.verified("the cache's token: error", largest_error([got], [wanted]), BOUNDS["forward"]):
        return

    def cached(repeats: int) -> list[float]:
        def all_steps(cache: KVCache) -> jax.Array:
            out = None
            for _ in range(steps):
                cache, out = program(cache, q, *new)
            assert out is not None
            return out

        values = []
        for _ in range(repeats):
            cache = jax.block_until_ready(jax.tree.map(jnp.copy, filled))
            (seconds,) = turns(all_steps, cache)(1)
            values.append(seconds / steps)
        return values

    whole = tuple(jax.random.normal(key, (batch, capacity, heads, size), jnp.bfloat16) for key in keys[:3])
    again, _ = build(lambda q, k, v: dot_product_attention(q, k, v, is_causal=True), *whole)
    contenders: dict[str, Turn] = {"KVCache": cached, "recompute": turns(again, *whole)}
    with session.peer("torch_attention.py") as torch:
        if torch:
            sizes = {"batch": batch, "capacity": capacity, "steps": steps, "heads": heads, "head_size": size}

            def theirs(repeats: int) -> list[float]:
                return [x for _ in range(repeats) for x in torch(ask="decode", dtype="bfloat16", **sizes)["seconds"]]

            try:
                theirs(1)
                contenders["PyTorch"] = theirs
            except NotAvailable as reason:
                session.row("against PyTorch", status=NOT_RUN, detail=str(reason))
        seconds = race(contenders, **session.timing)
    case = f"batch {batch}, cache {capacity}"
    for name, values in seconds.items():
        session.row(f"{name}, {case}", unit="tokens/s", values=[batch / value for value in values])
        if name != "KVCache":
            ratios = [theirs / ours for theirs, ours in zip(values, seconds["KVCache"], strict=True)]
            session.row(f"KVCache's tokens/s over {name}'s", values=ratios)
