"""Transformer blocks and stacks for encoders and decoders, as thin Linen modules over `jaxai.attention`.

Source: Vaswani et al. 2017, arXiv:1706.03762; with pre-norm as in GPT-2, so the residual stream is never normalised.
"""

import dataclasses
from functools import partial
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike, Float, Int

from jaxai.attention import AttentionStats, KVCache, attention_stats, dot_product_attention, rotary
from jaxai.errors import UserError
from jaxai.nn.layers import Dense, Dropout
from jaxai.typing import Array

Initializer = nn.initializers.Initializer


Hidden = Float[Array, "B T E"]


Tokens = Int[Array | np.ndarray, "B T"]


Lengths = Int[Array | np.ndarray, " B"] | None
"""The number of real tokens in each row; the rest is padding at the end."""


Memory = Float[Array, "M S E"] | None


MemoryLengths = Int[Array | np.ndarray, " M"] | None


WRITTEN_OUT = 256  # up to this many queries, the statistics include all attention weights


ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Options of a stack of Transformer blocks."""

    embed_dim: int = 128
    """Width of the residual stream, E."""
    num_layers: int = 4
    num_heads: int = 4
    """Query heads, N."""
    num_kv_heads: int = 0
    """Key and value heads, K, a divisor of num_heads (arXiv:2305.13245); 0: num_heads."""
    hidden_dim: int = 0
    """Width of the MLP's hidden layer, F; 0: 4 embed_dim."""
    gated: bool = False
    """Gate the MLP: activation(x W) * (x V) instead of activation(x W) (arXiv:2002.05202)."""
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    """Activation of the MLP; gelu is exact, gelu_tanh GPT-2's approximation."""
    norm: Literal["layer", "rms"] = "layer"
    """Layer normalisation (arXiv:1607.06450) or RMS normalisation (arXiv:1910.07467)."""
    bias: bool = True
    """Whether dense layers and layer normalisation have a bias."""
    position: Literal["learned", "rotary"] = "rotary"
    """Learned position embeddings, or rotary ones (arXiv:2104.09864)."""
    max_length: int = 1024
    """Number of learned positions; rotary ones are unlimited."""
    tied: bool = True
    """Whether the logits' kernel is the embedding, transposed (arXiv:1608.05859)."""
    dropout: float = 0.0
    """Dropout rate of embeddings, attention weights, and the output of attention and MLP."""
    share_layers: bool = False
    """Use the same block for all layers (Universal Transformer, arXiv:1807.03819)."""
    init_std: float = 0.02
    """Initial standard deviation of kernels and embeddings; divided by sqrt(2 num_layers) for output projections."""
    mimetic: bool = False
    """Initialise self-attention's query and key kernels equal, so that tokens attend to similar ones: this speeds up
    learning of retrieval (the query-key part of mimetic initialisation, arXiv:2305.09828)."""
    remat: bool = False
    """Recompute each block's activations in the backward pass instead of storing them."""
    scan: bool = False
    """Compile one block and scan over the stacked parameters of all blocks, for deep stacks."""

    def __post_init__(self) -> None:
        for name in ("embed_dim", "num_layers", "num_heads", "max_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise UserError(f"num_heads={self.num_heads} must divide embed_dim={self.embed_dim}")
        if self.num_kv_heads < 0 or self.hidden_dim < 0 or not self.init_std > 0:
            raise UserError("num_kv_heads and hidden_dim must be 0 or more, init_std more")
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise UserError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.position == "rotary" and self.head_dim % 2:
            raise UserError(f"position=rotary turns pairs: heads of size {self.head_dim} must be even")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.share_layers and self.scan:
            raise UserError(
                "scan stacks all blocks' parameters, with share_layers there is one block: choose one of them"
            )

    @property
    def head_dim(self) -> int:
        """Size of a head, H."""
        return self.embed_dim // self.num_heads


def mimetic(config: TransformerConfig) -> Initializer:
    """Initialiser of the query, key and value kernel [E, (N + 2 K) H]: query and key parts equal, std E^-1/2."""

    def init(key: Array, size: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        N, K, H = config.num_heads, config.num_kv_heads or config.num_heads, config.head_dim
        keys, values = jax.random.normal(key, (2, size[0], K, H), dtype)
        keys = keys * size[0] ** -0.5
        heads = [jnp.repeat(keys, N // K, 1), keys, config.init_std * values]
        return jnp.concatenate(heads, 1).reshape(size)

    return init


def dense(
    config: TransformerConfig,
    features: int,
    dtype: Any,
    name: str,
    *,
    writes: bool = False,
    init: Initializer | None = None,
) -> Dense:
    """A dense layer with the stack's initialisation; set ``writes`` if its result is added to the residual stream."""
    usual = nn.initializers.normal(config.init_std / (2 * config.num_layers) ** 0.5 if writes else config.init_std)
    return Dense(features, config.bias, dtype, init or usual, name=name)


def norm(config: TransformerConfig, dtype: Any, name: str) -> nn.Module:
    """The stack's normalisation of the last axis."""
    if config.norm == "rms":
        return nn.RMSNorm(epsilon=1e-6, dtype=dtype, name=name)
    return nn.LayerNorm(epsilon=1e-5, use_bias=config.bias, dtype=dtype, name=name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The cache of one decoder block: keys and values of earlier tokens, and of the encoder's memory."""

    tokens: Any
    memory: Any = None


def init_cache(config: TransformerConfig, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> Any:
    """An empty cache for each block (stacked with ``config.scan``), with room for ``capacity`` tokens in each row.

    Raises UserError for more tokens than learned positions.
    """
    if config.position == "learned" and capacity > config.max_length:
        raise UserError(f"capacity={capacity}, but max_length={config.max_length} positions were learned")
    one = Cache(KVCache.init(batch, capacity, config.num_kv_heads or config.num_heads, config.head_dim, dtype=dtype))
    if config.scan:
        return jax.tree.map(lambda x: jnp.repeat(x[None], config.num_layers, 0), one)
    return (one,) * config.num_layers


def lengths_of(cache: Any) -> Int[Array, " B"]:
    """The number of tokens per row in the caches of a stack."""
    return cache[0].tokens.lengths if isinstance(cache, tuple) else cache.tokens.lengths[0]


def reorder_cache(cache: Any, rows: Int[Array, " B"]) -> Any:
    """Gather rows of the tokens' keys and values in the caches of a stack; the memory's are unchanged."""
    if isinstance(cache, tuple):
        return tuple(dataclasses.replace(one, tokens=jax.tree.map(lambda x: x[rows], one.tokens)) for one in cache)
    return dataclasses.replace(cache, tokens=jax.tree.map(lambda x: x[:, rows], cache.tokens))


def with_memory(cache: Any, filled: Any) -> Any:
    """Copy the memory's keys and values from the caches ``filled``, returned by a call with memory, to ``cache``."""
    if isinstance(cache, tuple):
        return tuple(dataclasses.replace(one, memory=other.memory) for one, other in zip(cache, filled, strict=True))
    return dataclasses.replace(cache, memory=filled.memory)


def stack_statistics(blocks: Any) -> dict[str, AttentionStats]:
    """Stack the attention statistics of a stack's blocks along a leading layer axis.

    ``blocks`` is ``out["statistics"]``: a tuple of dicts, or with ``config.scan`` one dict of stacked arrays.
    """
    return jax.tree.map(lambda *layers: np.stack(layers), *blocks) if isinstance(blocks, tuple) else blocks


def apply_with_statistics(network: nn.Module, params: Any, *inputs: Any) -> tuple[Any, dict[str, AttentionStats]]:
    """The network's result for these inputs, and the attention of all its blocks (see `stack_statistics`)."""
    result, out = cast(Any, jax.jit(partial(network.apply, statistics=True))({"params": params}, *inputs))
    return result, stack_statistics(out["statistics"])


class SelfAttention(nn.Module):
    """Self-attention: one dense layer to queries, keys and values, and one for the output."""

    config: TransformerConfig
    causal: bool
    train: bool
    statistics: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Hidden, lengths: Lengths, cache: KVCache | None
    ) -> tuple[Hidden, KVCache | None, AttentionStats | None]:
        config, (B, T, _) = self.config, x.shape
        N, K, H = config.num_heads, config.num_kv_heads or config.num_heads, config.head_dim
        init = mimetic(config) if config.mimetic else None
        heads = dense(config, (N + 2 * K) * H, self.dtype, "query_key_value", init=init)(x).reshape(B, T, N + 2 * K, H)
        query, key, value = jnp.split(heads, [N, N + K], 2)
        if config.position == "rotary":
            positions = None if cache is None else cache.lengths[:, None] + jnp.arange(T)[None]
            query, key = rotary(query, positions), rotary(key, positions)
        if cache is not None:
            cache = cache.update(key, value)
            y, found = cast(Array, cache.attend(query)), None
        else:
            y, found = attend(self, query, key, value, self.causal, lengths)
        return dense(config, config.embed_dim, self.dtype, "out", writes=True)(y.reshape(B, T, -1)), cache, found


class CrossAttention(nn.Module):
    """Attention of x to the memory, or to cached keys and values [M, S, K, H] of a memory.

    Each of the M rows of the memory serves B / M adjacent rows of x, such as the beams of a sentence.
    """

    config: TransformerConfig
    train: bool
    statistics: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Hidden, memory: Memory, lengths: MemoryLengths, pair: tuple[Array, Array] | None
    ) -> tuple[Hidden, tuple[Array, Array], AttentionStats | None]:
        config, K = self.config, self.config.num_kv_heads or self.config.num_heads
        if memory is not None:
            both = dense(config, 2 * K * config.head_dim, self.dtype, "key_value")(memory)
            key, value = jnp.split(both.reshape(*both.shape[:2], 2 * K, config.head_dim), 2, 2)
            pair = key, value
        if pair is None:
            raise UserError("memory=None needs a cache that a call with memory has returned")
        if len(x) % len(pair[0]):
            raise UserError(f"{len(x)} rows of targets for {len(pair[0])} rows of memory: give a multiple of them")
        query = dense(config, config.embed_dim, self.dtype, "query")(x)
        query = query.reshape(len(pair[0]), -1, config.num_heads, config.head_dim)
        y, found = attend(self, query, *pair, False, lengths)
        return dense(config, config.embed_dim, self.dtype, "out", writes=True)(y.reshape(x.shape)), pair, found


def attend(
    module: SelfAttention | CrossAttention, query: Array, key: Array, value: Array, causal: bool, lengths: Lengths
) -> tuple[Array, AttentionStats | None]:
    """Dot-product attention with the module's dropout, and its statistics if the module asks for them; these include
    all weights for up to 256 queries.
    """
    how: dict[str, Any] = {"is_causal": causal, "key_value_seq_lengths": lengths}
    rows = np.arange(query.shape[1]) if query.shape[1] <= WRITTEN_OUT else None
    found = attention_stats(query, key, rows=rows, **how) if module.statistics else None
    if module.train and module.config.dropout:
        how |= {"dropout_rate": module.config.dropout, "dropout_key": module.make_rng("dropout")}
    return dot_product_attention(query, key, value, **how), found


class MLP(nn.Module):
    """A block's MLP: activation(x W) W', or gated (activation(x W) * (x V)) W'."""

    config: TransformerConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        config, hidden = self.config, self.config.hidden_dim or 4 * self.config.embed_dim
        y = dense(config, hidden * (2 if config.gated else 1), self.dtype, "in")(x)
        gate, *rest = jnp.split(y, 2, -1) if config.gated else [y]
        y = ACTIVATIONS[config.activation](gate)
        return dense(config, config.embed_dim, self.dtype, "out", writes=True)(y * rest[0] if rest else y)


class Block(nn.Module):
    """x + attention(norm(x)), with ``cross`` then x + cross_attention(norm(x)), then x + mlp(norm(x))."""

    config: TransformerConfig
    causal: bool
    cross: bool
    train: bool
    statistics: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Hidden, lengths: Lengths, memory: Memory, memory_lengths: MemoryLengths, cache: Cache | None
    ) -> tuple[Hidden, tuple[Cache | None, dict[str, AttentionStats | None]]]:
        config, how = self.config, (self.train, self.statistics, self.dtype)
        drop = Dropout(config.dropout, self.train)
        tokens, pair = (None, None) if cache is None else (cache.tokens, cache.memory)
        attention = SelfAttention(config, self.causal, *how, name="attention")
        y, tokens, found = attention(norm(config, self.dtype, "norm_attention")(x), lengths, tokens)
        x, statistics = x + drop(y), {"attention": found}
        if self.cross:
            attention = CrossAttention(config, *how, name="cross_attention")
            y, pair, found = attention(norm(config, self.dtype, "norm_cross")(x), memory, memory_lengths, pair)
            x, statistics = x + drop(y), statistics | {"cross_attention": found}
        y = MLP(config, self.dtype, name="mlp")(norm(config, self.dtype, "norm_mlp")(x))
        return x + drop(y), (None if tokens is None else Cache(tokens, pair), statistics)


class Stack(nn.Module):
    """Blocks and a final normalisation: parameters ``block_0``, ..., or ``block`` if they are shared or scanned.

    Returns hidden states [B, T, E], the updated caches, and each block's statistics.
    """

    config: TransformerConfig
    causal: bool
    cross: bool
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        lengths: Lengths = None,
        memory: Memory = None,
        memory_lengths: MemoryLengths = None,
        cache: Any = None,
        *,
        train: bool = False,
        statistics: bool = False,
    ) -> tuple[Hidden, Any, Any]:
        config, how = self.config, (self.causal, self.cross, train, statistics, self.dtype)
        x = Dropout(config.dropout, train)(x)
        block_class = nn.remat(Block, prevent_cse=not config.scan) if config.remat else Block
        if config.scan:
            loop = nn.scan(
                block_class,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
                length=config.num_layers,
            )
            x, (cache, found) = loop(config, *how, name="block")(x, lengths, memory, memory_lengths, cache)
        else:
            names = ["block"] if config.share_layers else [f"block_{layer}" for layer in range(config.num_layers)]
            blocks = [block_class(config, *how, name=name) for name in names]
            caches, outs = cache or [None] * config.num_layers, []
            for layer in range(config.num_layers):
                block = blocks[layer % len(blocks)]
                x, out = block(x, lengths, memory, memory_lengths, caches[layer])
                outs.append(out)
            cache, found = zip(*outs, strict=True)
        return norm(config, self.dtype, "norm")(x), cache, found
