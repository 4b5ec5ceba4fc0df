"""Transformer models: language model, encoder, encoder-decoder."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxai.nn.transformer import Hidden, Lengths, Memory, MemoryLengths, Stack, Tokens, TransformerConfig, lengths_of
from jaxai.ops.dense import dense as product
from jaxai.typing import Array, PyTree


class Embedding(nn.Module):
    """Embedding of tokens, and the projection of hidden states to logits: parameters ``tokens`` [V, E], ``positions``
    [max_length, E] if they are learned, ``logits`` [E, V] if the projection is not tied to the embedding."""

    vocabulary: int
    config: TransformerConfig
    dtype: Any = None

    def setup(self) -> None:
        config, init = self.config, nn.initializers.normal(self.config.init_std)
        self.tokens = self.param("tokens", init, (self.vocabulary, config.embed_dim))
        if config.position == "learned":
            self.positions = self.param("positions", init, (config.max_length, config.embed_dim))
        if not config.tied:
            self.kernel = self.param("logits", init, (config.embed_dim, self.vocabulary))

    def __call__(self, tokens: Tokens, before: Lengths = None) -> Hidden:
        """Embed tokens; ``before`` is the number of earlier tokens in each row, which shifts the positions."""
        x, T = jnp.take(self.tokens, tokens, axis=0), tokens.shape[1]
        if self.config.position == "learned":
            if self.config.max_length < T:
                raise ValueError(f"{T} tokens, but max_length={self.config.max_length} positions were learned")
            start = jnp.zeros((1, 1), jnp.int32) if before is None else before[:, None]
            x = x + jnp.take(self.positions, start + jnp.arange(T)[None], axis=0)
        return x.astype(self.dtype or x.dtype)

    def logits(self, x: Hidden) -> Float[Array, "B T V"]:
        kernel = self.tokens.T if self.config.tied else self.kernel
        return product(x, kernel.astype(x.dtype)).astype(jnp.float32)


class LanguageModel(nn.Module):
    """A decoder-only Transformer: next-token logits, float32 [B, T, V], for ``tokens`` int [B, T].

    With ``cache`` (see `init_cache`) the tokens continue those in the cache; ``out["cache"]`` is the updated cache.
    With ``statistics``, ``out["statistics"]`` holds the attention of each block. ``train`` needs an rng ``dropout``.
    Raises ValueError for more tokens than learned positions.

    >>> import jax
    >>> from jaxai.nn.transformer import init_cache
    >>> model, tokens = LanguageModel(65, TransformerConfig(embed_dim=32, num_layers=2)), jnp.zeros((1, 8), int)
    >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
    >>> logits, out = jax.jit(model.apply)(variables, tokens, cache=init_cache(model.config, batch=1, capacity=16))
    >>> logits.shape, lengths_of(out["cache"]).tolist()
    ((1, 8, 65), [8])
    """

    vocabulary: int
    config: TransformerConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: Tokens, *, cache: Any = None, train: bool = False, statistics: bool = False
    ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
        embedding = Embedding(self.vocabulary, self.config, self.dtype, name="embedding")
        x = embedding(tokens, None if cache is None else lengths_of(cache))
        decoder = Stack(self.config, causal=True, cross=False, dtype=self.dtype, name="decoder")
        x, cache, found = decoder(x, cache=cache, train=train, statistics=statistics)
        return embedding.logits(x), {"cache": cache, "statistics": found}


class Encoder(nn.Module):
    """Tokens [B, T], of which ``lengths`` [B] are real, to hidden states [B, T, E], with bidirectional attention."""

    vocabulary: int
    config: TransformerConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: Tokens, lengths: Lengths = None, *, train: bool = False, statistics: bool = False
    ) -> tuple[Hidden, dict[str, Any]]:
        x = Embedding(self.vocabulary, self.config, self.dtype, name="embedding")(tokens)
        encoder = Stack(self.config, causal=False, cross=False, dtype=self.dtype, name="encoder")
        x, _, found = encoder(x, lengths, train=train, statistics=statistics)
        return x, {"statistics": found}


class EncoderDecoder(nn.Module):
    """An encoder and a decoder with the same config and a shared embedding: next-target-token logits, [B, T, V].

    Source and target tokens are int [B, S] and [B, T]; of the source ``source_lengths`` [B] are real. To decode,
    call `encode` once; then `decode` with its memory [M, S, E] and an `init_cache` of B = M * beams rows; from then on
    `decode` with memory None and the returned cache. Pass the memory's lengths in each call.
    """

    vocabulary: int
    config: TransformerConfig
    dtype: Any = None

    def setup(self) -> None:
        self.embedding = Embedding(self.vocabulary, self.config, self.dtype)
        self.encoder = Stack(self.config, causal=False, cross=False, dtype=self.dtype)
        self.decoder = Stack(self.config, causal=True, cross=True, dtype=self.dtype)

    def __call__(
        self, source: Int[Array | np.ndarray, "B S"], target: Tokens, source_lengths: Lengths = None, **how: bool
    ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
        memory, encoded = self.encode(source, source_lengths, **how)
        logits, decoded = self.decode(target, memory, source_lengths, **how)
        return logits, decoded | {"encoder_statistics": encoded["statistics"]}

    def encode(
        self, source: Tokens, lengths: Lengths = None, *, train: bool = False, statistics: bool = False
    ) -> tuple[Hidden, dict[str, Any]]:
        memory, _, found = self.encoder(self.embedding(source), lengths, train=train, statistics=statistics)
        return memory, {"statistics": found}

    def decode(
        self,
        target: Tokens,
        memory: Memory,
        memory_lengths: MemoryLengths = None,
        *,
        cache: Any = None,
        train: bool = False,
        statistics: bool = False,
    ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
        x = self.embedding(target, None if cache is None else lengths_of(cache))
        how = {"cache": cache, "train": train, "statistics": statistics}
        x, cache, found = self.decoder(x, None, memory, memory_lengths, **how)
        return self.embedding.logits(x), {"cache": cache, "statistics": found}


def init_encoder_decoder(network: EncoderDecoder, key: Array) -> PyTree:
    """The initial parameters."""
    token = jnp.zeros((1, 1), jnp.int32)
    return network.init(key, token, token, jnp.ones(1, jnp.int32))["params"]
