"""One step of supervised training, and evaluation: pure functions, jitted where they are called."""

from collections.abc import Callable

import jax
import optax

from jaxai.train.state import TrainState
from jaxai.typing import Array, PyTree

LossFn = Callable[[PyTree, PyTree, Array], tuple[Array, dict[str, Array]]]
"""(params, batch, key) -> (loss [], metrics)."""


def init_state(params: PyTree, tx: optax.GradientTransformation, key: Array) -> TrainState:
    """The state before the first step; ``key`` a typed key."""
    return TrainState(step=jax.numpy.zeros((), "int32"), params=params, opt_state=tx.init(params), key=key)


def train_step(
    state: TrainState, batch: PyTree, *, loss_fn: LossFn, tx: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Array]]:
    """One update of all parameters: params - tx(grad of the loss over the batch).

    Metrics: ``loss``, those of ``loss_fn``, and the norms of gradient, parameters and update, all float32 [].
    """
    key = jax.random.fold_in(state.key, state.step)
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, **metrics, **norms(grads, params, updates)}
    return TrainState(state.step + 1, params, opt_state, state.key), metrics


def norms(grads: PyTree, params: PyTree, updates: PyTree) -> dict[str, Array]:
    """The global L2 norms that every step reports."""
    trees = {"gradient_norm": grads, "parameter_norm": params, "update_norm": updates}
    return {name: optax.tree.norm(tree) for name, tree in trees.items()}
