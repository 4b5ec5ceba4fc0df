"""Turns of decoding with a cache: one update and one attention per token."""

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
from timing import Turn, relative

from jaxai.attention import KVCache

HEADS, HEAD_SIZE = 8, 64


def decode_contender(batch: int, capacity: int, steps: int) -> tuple[Turn, float, float]:
    """Turns of ``steps`` tokens, the compilation time in seconds, and the largest difference from jax.nn."""
    keys, old = jax.random.split(jax.random.key(0), 5), capacity - steps - 1
    q, *new = (jax.random.normal(key, (batch, 1, HEADS, HEAD_SIZE)) for key in keys[:3])
    prompt = [jax.random.normal(key, (batch, old, HEADS, HEAD_SIZE)) for key in keys[3:]]
    filled = jax.jit(KVCache.update)(KVCache.init(batch, capacity, HEADS, HEAD_SIZE), *prompt)

    def step(cache: KVCache, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[KVCache, Any]:
        cache = cache.update(k, v)
        return cache, cache.attend(q)

    before = time.perf_counter()
    program = jax.jit(step, donate_argnums=0).lower(filled, q, *new).compile()
    compile_seconds = time.perf_counter() - before

    def turn(repeats: int) -> list[float]:
        cache, _ = jax.block_until_ready(program(jax.tree.map(jnp.copy, filled), q, *new))
        clock = [time.perf_counter()]
        for _ in range(steps):
            cache, _ = jax.block_until_ready(program(cache, q, *new))
            clock.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(clock)]

    _, got = program(jax.tree.map(jnp.copy, filled), q, *new)
    wanted = jax.nn.dot_product_attention(q, *(jnp.concatenate(pair, axis=1) for pair in zip(prompt, new, strict=True)))
    return turn, compile_seconds, relative([got], [wanted], 1e-4)
