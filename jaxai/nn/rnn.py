"""Recurrent networks as thin Linen modules over `jaxai.ops.recurrent`, and a recurrent language model."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxai.errors import UserError
from jaxai.nn.layers import Dense, Dropout
from jaxai.ops.recurrent import GRU, LSTM, RNN, gru, lstm, project, rnn
from jaxai.typing import Array

Tokens = Int[Array | np.ndarray, "B T"]
Inputs = Float[Array | np.ndarray, "B T I"] | Tokens
Lengths = Int[Array | np.ndarray, " B"] | None
"""The number of real steps in each row; the rest is padding at the end."""

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


@dataclasses.dataclass(frozen=True)
class RNNConfig:
    """Options of a stack of recurrent layers."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    hidden_dim: int = 128
    """Size of the hidden state, H."""
    num_layers: int = 2
    embed_dim: int = 0
    """Size of a language model's token embedding, E; 0: one-hot tokens as in char-rnn."""
    dropout: float = 0.0
    """Dropout rate between layers."""

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise UserError(f"cell must be one of {', '.join(CELLS)}, got {self.cell!r}")
        for name, least in (("hidden_dim", 1), ("num_layers", 1), ("embed_dim", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), got {self.dropout}")


def init_state(config: RNNConfig, batch: int, *, bidirectional: bool = False) -> Any:
    """The zero state: h [B, H] per layer, for LSTMs (h, c); with ``bidirectional`` a pair of these per layer."""

    def one() -> Any:
        h, c = jnp.zeros((2, batch, config.hidden_dim))
        return (h, c) if config.cell == "lstm" else h

    return tuple((one(), one()) if bidirectional else one() for _ in range(config.num_layers))


def reset_state(state: Any, rows: Bool[Array, " B"]) -> Any:
    """Set the state to zero in rows where a new text begins."""
    return jax.tree.map(lambda x: jnp.where(rows[:, None], jnp.zeros_like(x), x), state)


def uniform(width: int) -> nn.initializers.Initializer:
    """PyTorch's initialiser for recurrent layers: uniform in +-1 / sqrt(H)."""
    bound = width**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Layer(nn.Module):
    """A cell scanned over time: x [T, B, I], or tokens [T, B] below I, to outputs [T, B, H] and the last state.

    Parameters ``kernel`` [I, G], ``recurrent_kernel`` [H, G], ``bias`` [G] and for GRUs ``recurrent_bias`` [H], as in
    `jaxai.ops.recurrent`. They are initialised as in PyTorch, except that the LSTM's forget gates have bias 1 (Gers et
    al. 2000; Jozefowicz et al. 2015; char-rnn).
    """

    config: RNNConfig
    inputs: int
    reverse: bool = False

    @nn.compact
    def __call__(self, x: Array, state: Any, lengths: Lengths) -> tuple[Float[Array, "T B H"], Any]:
        cell, width = self.config.cell, self.config.hidden_dim
        gates, init = CELLS[cell].gates * width, uniform(width)

        def init_bias(*arguments: Any) -> Array:
            bias = init(*arguments)
            return bias.at[width : 2 * width].set(1) if cell == "lstm" else bias

        kernel = self.param("kernel", init, (self.inputs, gates))
        recurrent_kernel = self.param("recurrent_kernel", init, (width, gates))
        bias = self.param("bias", init_bias, (gates,))
        x = jnp.take(kernel, x, axis=0, mode="clip") if x.ndim == 2 else project(x, kernel)
        how: dict[str, Any] = {"lengths": lengths, "reverse": self.reverse}
        if cell == "lstm":
            return lstm(x, state, recurrent_kernel, bias, **how)
        if cell == "rnn":
            return rnn(x, state, recurrent_kernel, bias, **how)
        recurrent_bias = jnp.pad(self.param("recurrent_bias", init, (width,)), (2 * width, 0))
        return gru(x + bias[None, None], state, recurrent_kernel, recurrent_bias, **how)


class Recurrent(nn.Module):
    """A stack of layers: x [B, T, I], or tokens [B, T] below ``vocabulary``, to outputs and each layer's last state.

    Outputs are [B, T, H], or with ``bidirectional`` [B, T, 2 H], forward then backward; past ``lengths`` they are 0 and
    the state does not change. ``state`` is the initial one, by default zero (`init_state`). ``train`` needs an rng
    ``dropout``. Parameters are ``layer_0``, ... and ``layer_0_reverse``, ..., each those of a `Layer`.

    >>> network, x = Recurrent(RNNConfig("gru", hidden_dim=3), bidirectional=True), jnp.zeros((2, 5, 4))
    >>> outputs, state = network.apply(network.init(jax.random.key(0), x), x)
    >>> outputs.shape, jax.tree.map(jnp.shape, state)
    ((2, 5, 6), (((2, 3), (2, 3)), ((2, 3), (2, 3))))
    """

    config: RNNConfig
    bidirectional: bool = False
    vocabulary: int = 0

    @nn.compact
    def __call__(
        self, x: Inputs, lengths: Lengths = None, state: Any = None, *, train: bool = False
    ) -> tuple[Float[Array, "B T F"], Any]:
        state = init_state(self.config, len(x), bidirectional=self.bidirectional) if state is None else state
        x, after = jnp.asarray(x).swapaxes(0, 1), []
        for number, before in enumerate(state):
            x = Dropout(self.config.dropout, train)(x) if number else x
            inputs, name = self.vocabulary if x.ndim == 2 else x.shape[-1], f"layer_{number}"
            if self.bidirectional:
                pairs = [
                    Layer(self.config, inputs, reverse, name=name + "_reverse" * reverse)(x, before[reverse], lengths)
                    for reverse in (False, True)
                ]
                outputs, states = zip(*pairs, strict=True)
                x = jnp.concatenate(outputs, -1)
            else:
                x, states = Layer(self.config, inputs, name=name)(x, before, lengths)
            after.append(states)
        return x.swapaxes(0, 1), tuple(after)


class RecurrentLanguageModel(nn.Module):
    """Next-token logits, float32 [B, T, V]; same interface as `jaxai.nn.transformer_models.LanguageModel`.

    ``cache`` is the state before ``tokens`` int [B, T], by default zero (`init_state`); ``out["cache"]`` is the state
    after them. ``train`` needs an rng ``dropout``. The default config is Karpathy's char-rnn (2015); without
    ``embed_dim`` a token selects a row of the first layer's kernel.

    >>> model, tokens = RecurrentLanguageModel(65, RNNConfig(hidden_dim=32)), jnp.zeros((1, 8), int)
    >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
    >>> logits, out = jax.jit(model.apply)(variables, tokens, cache=init_state(model.config, batch=1))
    >>> logits.shape, len(out["cache"])
    ((1, 8, 65), 2)
    """

    vocabulary: int
    config: RNNConfig

    @nn.compact
    def __call__(
        self, tokens: Tokens, *, cache: Any = None, train: bool = False
    ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
        x, config = tokens, self.config
        if config.embed_dim:
            x = jnp.take(self.param("embedding", nn.initializers.normal(1), (self.vocabulary, config.embed_dim)), x, 0)
        x, state = Recurrent(config, vocabulary=self.vocabulary, name="layers")(x, state=cache, train=train)
        return Dense(self.vocabulary, kernel_init=uniform(config.hidden_dim), name="logits")(x), {"cache": state}
