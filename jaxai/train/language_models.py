"""Training of language models (Transformers and recurrent networks) on one text, and of translation models on pairs."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from jaxai.config import Training, resumable
from jaxai.data.text.corpus import ordered, random_windows, streams, windows
from jaxai.errors import UserError
from jaxai.nn.decoding.completion import Network, empty_state
from jaxai.nn.rnn import RecurrentLanguageModel, RNNConfig, reset_state
from jaxai.nn.transformer import TransformerConfig
from jaxai.nn.transformer_models import EncoderDecoder, LanguageModel
from jaxai.run.folder import Run
from jaxai.train.feed import Batches
from jaxai.train.loop import Result
from jaxai.train.optim import Adam, optimizer
from jaxai.train.state import TrainState
from jaxai.train.supervised import Supervised, mean_gradient, smoothed_cross_entropy
from jaxai.train.utilization import training_speed, transformer_operations
from jaxai.typing import Array, PyTree

Batch = Mapping[str, Array | np.ndarray]
"""``input`` and ``target`` int [B, T], as `jaxai.data.text` makes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(Training):
    """Options of experiments that train a language model on one text."""

    network: Literal["transformer", "recurrent"] = "transformer"
    transformer: TransformerConfig = TransformerConfig()
    """Options of the Transformer."""
    rnn: RNNConfig = RNNConfig()
    """Options of the recurrent network."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the Transformer's activations; parameters are float32."""
    length: int = 64
    """Tokens of a training window, T."""
    batch_size: int = 12
    optimizer: Adam = Adam()
    decay_steps: int = 2000
    """Steps over which the learning rate schedule runs."""
    eval_every: int = 250
    eval_batches: int = 20
    """Random batches on which to estimate the loss, as in nanoGPT; 0: the whole validation text in order."""
    steps_per_call: int | None = resumable(None)
    """Steps per call of the compiled program; by default 1 on a CPU, elsewhere as many as take about 30 ms."""
    accumulation_steps: int = resumable(1)
    """Parts of a batch whose gradients are computed one after the other, to save memory; Transformer only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(2, "length")
        self.check_at_least(1, "batch_size", "decay_steps", "eval_every", "accumulation_steps")
        if self.steps_per_call is not None:
            self.check_at_least(1, "steps_per_call")
        self.check_at_least(0, "eval_batches")
        recurrent, stack = self.network == "recurrent", self.transformer
        if recurrent and self.eval_batches:
            raise UserError("--network recurrent reads in order, it has no random windows: give --eval-batches 0")
        if recurrent and self.dtype != "float32":
            raise UserError(f"--dtype {self.dtype} needs --network transformer: the recurrent network is float32")
        if self.accumulation_steps > 1 and (recurrent or self.batch_size % self.accumulation_steps):
            raise UserError(
                "--accumulation-steps needs --network transformer and a divisor of --batch-size, got "
                f"{self.accumulation_steps}"
            )
        if not recurrent and stack.position == "learned" and self.length > stack.max_length:
            raise UserError(f"--length {self.length} needs --transformer.max-length of at least that")

    def language_model(self, vocabulary: int) -> Network:
        """The network for tokens below ``vocabulary``."""
        if self.network == "recurrent":
            return RecurrentLanguageModel(vocabulary, self.rnn)
        return LanguageModel(vocabulary, self.transformer, jnp.dtype(self.dtype))

    def batches(self, ids: Int[np.ndarray, " n"], **rows: int) -> Batches:
        """Random windows of a text for a Transformer, contiguous streams for a recurrent network.

        ``rows`` (process_index, process_count) is passed on to them.
        """
        if self.network == "recurrent":
            return streams(ids, self.batch_size, self.length, **rows)
        return windows(ids, self.batch_size, self.length, seed=self.seed, **rows)


def language_model_trainer(config: LanguageModelConfig, network: Network) -> Supervised:
    """The trainer for ``config.batches``; a recurrent network's state is carried from batch to batch."""
    how: dict[str, Any]
    if isinstance(network, RecurrentLanguageModel):
        how = {"loss_fn": partial(carried_loss, network), "carry": empty_state(network, config.batch_size, 0)}
    else:
        gradient = partial(mean_gradient, accumulation_steps=config.accumulation_steps)
        how = {"loss_fn": partial(next_token_loss, network), "gradient": gradient}
    tx = optimizer(config.optimizer, config.decay_steps)
    return Supervised(init_params=partial(init_language_model, network), tx=tx, **how)


def init_language_model(network: Network, key: Array) -> PyTree:
    """Initial parameters of a language model."""
    return network.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def next_token_loss(network: LanguageModel, params: PyTree, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
    """The mean cross-entropy of the next tokens, in nats, and no further metrics."""
    logits, _ = network.apply({"params": params}, batch["input"], train=True, rngs={"dropout": key})
    return token_losses(logits, batch["target"]).mean(), {}


def carried_loss(
    network: RecurrentLanguageModel, params: PyTree, batch: Batch, key: Array, carry: PyTree
) -> tuple[Array, tuple[dict[str, Array], PyTree]]:
    """`next_token_loss` of a recurrent network that starts in state ``carry``; also returns the final state.

    ``carry`` is the final state of the previous batch, reset in the rows where ``batch["first"]`` [B] is true.
    """
    state, how = reset_state(carry, jnp.asarray(batch["first"])), {"train": True, "rngs": {"dropout": key}}
    logits, out = network.apply({"params": params}, batch["input"], cache=state, **how)
    return token_losses(logits, batch["target"]).mean(), ({}, cast(dict, out)["cache"])


def token_losses(logits: Any, targets: Int[Array | np.ndarray, "B T"]) -> Float[Array, "B T"]:
    """-log softmax(logits)[target]; logits [B, T, V]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def summed_loss(network: Network, params: PyTree, batch: Batch, state: PyTree) -> tuple[tuple[Array, Array], PyTree]:
    """((sum of losses weighted by ``batch["weight"]`` [B, T], sum of weights), final state of a recurrent network)."""
    logits, out = network.apply({"params": params}, batch["input"], cache=state)
    weight, after = batch["weight"], None if state is None else cast(dict, out)["cache"]
    return ((weight * token_losses(logits, batch["target"])).sum(), weight.sum()), after


def language_model_evaluation(
    config: LanguageModelConfig, network: Network, train: Int[np.ndarray, " n"], validation: Int[np.ndarray, " m"]
) -> Callable[[Run, int, TrainState], dict[str, float]]:
    """The ``evaluate`` of a `Task`: a function (run, step, state) -> ``validation_loss`` in nats per token.

    With ``config.eval_batches`` > 0, estimate it and ``training_loss`` on random windows of each text, as nanoGPT does.
    """
    evaluate = jax.jit(partial(summed_loss, network))
    size = config.batch_size, config.length

    def mean(state: TrainState, batches: Iterable[Batch]) -> float:
        sums, carry = [], jax.tree.map(jnp.zeros_like, state.carry)
        for batch in batches:
            values, carry = evaluate(state.params, batch, carry)
            sums.append(values)
        total, count = np.array(jax.device_get(sums)).sum(0)
        return float(total / count)

    def losses(run: Run, step: int, state: TrainState) -> dict[str, float]:
        if not config.eval_batches:
            return {"validation_loss": mean(state, ordered(validation, *size))}
        how = {"count": config.eval_batches, "first": step, "seed": config.seed + 1}
        texts = {"training_loss": train, "validation_loss": validation}
        return {name: mean(state, random_windows(ids, *size, **how)) for name, ids in texts.items()}

    return losses


def language_model_speed(config: LanguageModelConfig, network: Network, result: Result) -> dict[str, float | None]:
    """`training_speed` of a language model; ``mfu`` is None for recurrent networks, whose FLOPs are not counted."""
    if isinstance(network, RecurrentLanguageModel):
        return training_speed(result, None)
    params = result.state.params
    return training_speed(result, transformer_operations(network.config, params, config.batch_size, config.length))


def translation_loss(
    network: EncoderDecoder, smoothing: float, padding: int, params: PyTree, batch: Batch, key: Array
) -> tuple[Array, dict[str, Array]]:
    """`smoothed_cross_entropy` of the next tokens of ``batch["target"]`` [B, T] after ``batch["source"]`` [B, S]."""
    logits = target_logits(network, padding, params, batch, train=True, rngs={"dropout": key})
    return smoothed_cross_entropy(logits, jnp.asarray(batch["target"][:, 1:]), smoothing, padding=padding)


def translation_evaluation(
    network: EncoderDecoder, padding: int, batches: Sequence[Batch]
) -> Callable[[Run, int, TrainState], dict[str, float]]:
    """The ``evaluate`` of a `Task`: ``validation_loss`` of the EMA parameters over all batches, in nats per token."""

    @jax.jit
    def summed(params: PyTree, batch: Batch) -> tuple[Array, Array]:
        losses = token_losses(target_logits(network, padding, params, batch), batch["target"][:, 1:])
        weights = (batch["target"][:, 1:] != padding).astype(jnp.float32)
        return (weights * losses).sum(), weights.sum()

    def evaluate(run: Run, step: int, state: TrainState) -> dict[str, float]:
        sums = np.array([jax.device_get(summed(state.ema_params, batch)) for batch in batches])
        return {"validation_loss": float(sums[:, 0].sum() / sums[:, 1].sum())}

    return evaluate


def target_logits(
    network: EncoderDecoder, padding: int, params: PyTree, batch: Batch, **how: Any
) -> Float[Array, "B T V"]:
    """Logits for every target token but the first, with teacher forcing."""
    source, target = batch["source"], batch["target"]
    logits, _ = network.apply({"params": params}, source, target[:, :-1], (source != padding).sum(-1), **how)
    return cast(Array, logits)
