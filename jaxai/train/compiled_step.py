"""Compile a pure training step into programs that run one or several steps, optionally skipping non-finite updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike

from jaxai.distributed.sharding import batch_sharding, put_batch
from jaxai.errors import UserError
from jaxai.train.feed import Feed
from jaxai.typing import Array, PyTree

Step = Callable[[Any, Any], tuple[Any, dict[str, Array]]]
"""(state, batch) -> (state, metrics): pure, not jitted."""

CALL_SECONDS, LONGEST_CALL = 0.03, 32  # duration and steps of a call on an accelerator; each costs the host about 1 ms
SKIPPED, WORST = "skipped", "worst_leaf"
"""Metrics that `skip_nonfinite` adds."""


class CompiledStep:
    """A compiled step: (state, the rows of one or more batches) -> (state, each metric [steps]).

    The state is donated. A call runs 1 to ``limit`` steps. By default one program runs any number of them, and a
    shorter call pads the metrics with 0. With ``fixed`` each number of steps is compiled separately, as a loop of known
    length: on a GPU a loop of unknown length copies its condition to the host at each iteration. A new batch shape is
    compiled when it first occurs; raises ValueError if the batches of one call differ in shape.
    """

    def __init__(
        self, step: Step, shardings: PyTree, feed: Feed, mesh: Mesh, limit: int = 1, *, fixed: bool = False
    ) -> None:
        def fed(state: PyTree, rows: PyTree, arrays: PyTree) -> tuple[PyTree, dict[str, Array]]:
            return step(state, feed.batch(arrays, rows))

        function = scanned(fed) if fixed else multi_step(fed, limit) if limit > 1 else single(fed)
        self._function = jax.jit(function, donate_argnums=0, out_shardings=(shardings, None))
        self._feed, self._padded, self._sharding = feed, 0 if fixed else limit, batch_sharding(mesh, axis=1)
        self._programs: dict[tuple, Any] = {}

    def compile(self, state: PyTree, count: int = 1) -> None:
        """Compile the program for ``count`` batches of the next batch's shape, without advancing the data."""
        position = self._feed.rows.get_state()
        self._program(state, self._put([next(self._feed.rows)] * count), np.int32(count))
        self._feed.rows.set_state(position)

    def __call__(self, state: PyTree, rows: list[PyTree]) -> tuple[PyTree, dict[str, Array]]:
        stack, count = self._put(rows), np.int32(len(rows))
        return self._program(state, stack, count)(state, stack, self._feed.arrays, count)

    def _put(self, rows: list[PyTree]) -> PyTree:
        """Stack the rows of the batches along a new leading axis and put them on the devices."""
        if len({tuple(leaf.shape for leaf in jax.tree.leaves(row)) for row in rows}) > 1:
            raise UserError(f"steps_per_call={len(rows)}, but batches differ in shape: give 1")
        rows = rows + rows[-1:] * (self._padded - len(rows))
        return put_batch(jax.tree.map(lambda *x: np.stack(x), *rows), self._sharding)

    def _program(self, state: PyTree, stack: PyTree, count: np.int32) -> Any:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(stack))
        if shapes not in self._programs:
            self._programs[shapes] = self._function.lower(state, stack, self._feed.arrays, count).compile()
        return self._programs[shapes]


FedStep = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, dict[str, Array]]]
"""(state, rows of one batch, arrays on the device) -> (state, metrics)."""
Program = Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, dict[str, Array]]]
"""(state, stacked rows [n, ...], arrays on the device, count []) -> (state, stacked metrics [n])."""


def single(step: FedStep) -> Program:
    """A program that runs one step."""

    def once(state: PyTree, stack: PyTree, arrays: PyTree, count: Array) -> tuple[PyTree, dict[str, Array]]:
        state, metrics = step(state, jax.tree.map(lambda x: x[0], stack), arrays)
        return state, jax.tree.map(lambda x: x[None], metrics)

    return once


def scanned(step: FedStep) -> Program:
    """A program that runs one step for each of the stacked batches."""

    def loop(state: PyTree, stack: PyTree, arrays: PyTree, count: Array) -> tuple[PyTree, dict[str, Array]]:
        if len(jax.tree.leaves(stack)[0]) == 1:
            return single(step)(state, stack, arrays, count)
        return jax.lax.scan(lambda state, rows: step(state, rows, arrays), state, stack)

    return loop


def multi_step(step: FedStep, limit: int) -> Program:
    """A program that runs the first ``count`` of ``limit`` steps; the metrics of the others are 0."""

    def loop(state: PyTree, stack: PyTree, arrays: PyTree, count: Array) -> tuple[PyTree, dict[str, Array]]:
        def take(state: PyTree, index: ArrayLike) -> tuple[PyTree, dict[str, Array]]:
            return step(state, jax.tree.map(lambda x: x[index], stack), arrays)

        def body(index: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            state, metrics = take(carry[0], index)
            return state, jax.tree.map(lambda rows, one: rows.at[index].set(one), carry[1], metrics)

        shapes = jax.eval_shape(take, state, 0)[1]
        empty = jax.tree.map(lambda x: jnp.zeros((limit, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, empty))

    return loop


def steps_a_call(seconds: float, apart: int) -> int:
    """The number of steps for one call to take about 30 ms, at most 32; ``seconds`` is the duration of one step.

    ``apart`` is the number of steps between two interruptions by the host (evaluation, checkpoint), 0 for none. The
    result is a divisor of ``apart`` where one exists that is at least half the largest possible number: steps left over
    at an interruption run one by one.

    >>> steps_a_call(0.0015, 0), steps_a_call(0.0015, 250), steps_a_call(0.0001, 250), steps_a_call(0.05, 250)
    (20, 10, 25, 1)
    """
    most = max(1, min(LONGEST_CALL, round(CALL_SECONDS / seconds), apart or LONGEST_CALL))
    divisors = [count for count in range((most + 1) // 2, most + 1) if apart and apart % count == 0]
    return max(divisors, default=most)


def skip_nonfinite(step: Step) -> Step:
    """Skip the update, but increment the step, if any metric or float leaf of the new state is non-finite.

    Adds the metrics ``skipped`` (1 or 0) and ``worst_leaf``, the index in `float_leaves` of the leaf with the largest
    share of non-finite elements, or -1. Costs one pass over the state, and memory for a second copy of it.
    """

    def guarded(state: PyTree, batch: PyTree) -> tuple[PyTree, dict[str, Array]]:
        new, metrics = step(state, batch)
        leaves = list(float_leaves(new).values())
        bad = jnp.stack([(~jnp.isfinite(leaf)).sum() for leaf in leaves])
        worst = jnp.where(bad.any(), (bad / np.array([max(leaf.size, 1) for leaf in leaves])).argmax(), -1)
        finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all() & ~bad.any()

        def choose(path: tuple, after: Array, before: Array) -> Array:
            counts = isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "step"
            return after if counts else jnp.where(finite, after, before)

        kept = jax.tree_util.tree_map_with_path(choose, new, state)
        said = {SKIPPED: 1 - finite.astype(jnp.float32), WORST: worst.astype(jnp.float32)}
        return kept, metrics | said

    return guarded


def float_leaves(state: PyTree) -> dict[str, Array]:
    """The floating-point leaves of a state, by path."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return {name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
