"""Recurrent networks as thin Linen modules over `jaxai.ops.recurrent`, and a language model of them."""

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
"""How many steps of each row are real; the others are padding behind them."""

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


@dataclasses.dataclass(frozen=True)
class RNNConfig:
    """Options of a stack of recurrent layers."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    hidden_dim: int = 128
    """H, of the hidden state."""
    num_layers: int = 2
    embed_dim: int = 0
    """E, of a language model's tokens; 0: one-hot, so the first layer's kernel is their embedding, as in char-rnn."""
    dropout: float = 0.0
    """Of what a layer hands to the next."""

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise UserError(f"cell must be one of {', '.join(CELLS)}, got {self.cell!r}")
        for name, least in (("hidden_dim", 1), ("num_layers", 1), ("embed_dim", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), got {self.dropout}")


def init_state(config: RNNConfig, batch: int, *, bidirectional: bool = False) -> Any:
    """The zero state: for each layer h [B, H], of LSTMs (h, c), and with ``bidirectional`` a pair of that."""

    def one() -> Any:
        h, c = jnp.zeros((2, batch, config.hidden_dim))
        return (h, c) if config.cell == "lstm" else h

    return tuple((one(), one()) if bidirectional else one() for _ in range(config.num_layers))


def reset_state(state: Any, rows: Bool[Array, " B"]) -> Any:
    """The state with zeros in these rows: where the text of a row begins anew."""
    return jax.tree.map(lambda x: jnp.where(rows[:, None], jnp.zeros_like(x), x), state)


def uniform(width: int) -> nn.initializers.Initializer:
    """PyTorch's for recurrent layers: uniform within 1 / sqrt(H)."""
    bound = width**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Layer(nn.Module):
    """One cell over time: x [T, B, I], or tokens [T, B] of I kinds, to outputs [T, B, H] and the last state.

    Parameters ``kernel`` [I, G], ``recurrent_kernel`` [H, G], ``bias`` [G] and of GRUs ``recurrent_bias`` [H], as in
    `jaxai.ops.recurrent`, drawn as in PyTorch, but the LSTM's forget gates start with bias 1 (Gers et al. 2000;
    Jozefowicz et al. 2015; char-rnn).
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
    """A stack of layers: x [B, T, I], or tokens [B, T] of ``vocabulary`` kinds, to outputs and each layer's last state.

    Outputs [B, T, H], or with ``bidirectional`` [B, T, 2 H], forward before backward; past ``lengths`` they are 0 and
    the state stays. Without a ``state`` (see `init_state`) it starts from zeros. ``train`` needs an rng ``dropout``.
    Parameters ``layer_0`` ... and ``layer_0_reverse`` ..., each a `Layer`'s.

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
    """The logits of the next token after each token, float32 [B, T, V], as `jaxai.nn.transformer.LanguageModel`.

    ``tokens`` int [B, T] follow those that led to the state ``cache`` (see `init_state`), or are the first;
    ``out["cache"]`` is the state after them. ``train`` needs an rng ``dropout``. Karpathy 2015's char-rnn with
    the defaults; without ``embed_dim`` a token costs a row of the first layer's kernel.

    >>> model, tokens = RecurrentLanguageModel(65, RNNConfig(hidden_dim=32)), jnp.zeros((1, 8), int)
    >>> variables = model.init(jax.random.key(0), tokens)
    >>> logits, out = model.apply(variables, tokens, cache=init_state(model.config, batch=1))
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
