"""One step of supervised training, and evaluation: pure functions, jitted where they are called."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxai.train.optim import average_decay, update_average
from jaxai.train.state import TrainState
from jaxai.typing import Array, PyTree

LossFn = Callable[[PyTree, PyTree, Array], tuple[Array, dict[str, Array]]]
"""(params, batch, key) -> (loss [], metrics)."""


def init_state(
    params: PyTree, tx: optax.GradientTransformation, key: Array, *, keep_average: bool = False
) -> TrainState:
    """The state before the first step; ``key`` a typed key; ``average`` is None without ``keep_average``."""
    average = jax.tree.map(jnp.copy, params) if keep_average else None
    return TrainState(jnp.zeros((), "int32"), params, average, tx.init(params), key)


def train_step(
    state: TrainState,
    batch: PyTree,
    *,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    average_half_life: float = 0.0,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of all parameters: params - tx(grad of the loss over the batch).

    ``average_half_life``, in examples, must be positive where ``state.average`` is kept. Metrics: ``loss``, those of
    ``loss_fn``, and the norms of gradient, parameters and update, all float32 [].
    """
    key = jax.random.fold_in(state.key, state.step)
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        batch_size = len(jax.tree.leaves(batch)[0])
        average = update_average(average, params, average_decay(state.step, batch_size, average_half_life))
    metrics = {"loss": loss, **metrics, **norms(grads, params, updates)}
    return TrainState(state.step + 1, params, average, opt_state, state.key), metrics


def norms(grads: PyTree, params: PyTree, updates: PyTree) -> dict[str, Array]:
    """The global L2 norms that every step reports."""
    trees = {"gradient_norm": grads, "parameter_norm": params, "update_norm": updates}
    return {name: optax.tree.norm(tree) for name, tree in trees.items()}
