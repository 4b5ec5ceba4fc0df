"""From a pure step to compiled programs that take one or several steps, and leave out what is not finite on request."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike

from jaxai.train.sharding import batch_sharding, put_batch
from jaxai.typing import Array, PyTree

Step = Callable[[Any, Any], tuple[Any, dict[str, Array]]]
"""(state, batch) -> (state, metrics): pure, not jitted."""

Take = Callable[[PyTree, list[PyTree]], tuple[PyTree, dict[str, Array]]]
"""(state, batches) -> (state, each metric of all steps): compiled."""

SKIPPED, WORST = "skipped", "worst_leaf"
"""What `skipping` adds to the metrics."""


@runtime_checkable
class Batches(Iterator[Any], Protocol):
    """An endless iterator over batches (numpy) whose position can be saved: grain's iterators are such."""

    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


def compile_steps(step: Step, state: PyTree, shardings: PyTree, batches: Batches, mesh: Mesh, limit: int = 1) -> Take:
    """(state, 1 to ``limit`` batches) -> (state, each metric [limit]): that many steps, the rest of the metrics 0.

    One program for every number of batches, compiled for this state and the shapes of the iterator's next batch, whose
    position stays where it is; batches of other shapes get theirs when they come. Batches of one call have one shape.
    """
    sharding = batch_sharding(mesh, axis=1)

    def put(rows: list[PyTree]) -> PyTree:
        rows = rows + rows[-1:] * (limit - len(rows))
        return put_batch(jax.tree.map(lambda *x: np.stack(x) if limit > 1 else x[0][None], *rows), sharding)

    function = jax.jit(several(step, limit), donate_argnums=0, out_shardings=(shardings, None))
    programs: dict[tuple, Any] = {}

    def program(state: PyTree, stack: PyTree) -> Any:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(stack))
        if shapes not in programs:
            programs[shapes] = function.lower(state, stack, np.int32(1)).compile()
        return programs[shapes]

    def take(state: PyTree, rows: list[PyTree]) -> tuple[PyTree, dict[str, Array]]:
        stack = put(rows)
        return program(state, stack)(state, stack, np.int32(len(rows)))

    position = batches.get_state()
    program(state, put([next(batches)]))
    batches.set_state(position)
    return take


def several(step: Step, limit: int) -> Callable[[PyTree, PyTree, Array], tuple[PyTree, dict[str, Array]]]:
    """(state, stacked batches [limit, ...], count []) -> (state, stacked metrics): the first ``count`` steps."""

    def take(state: PyTree, stack: PyTree, index: ArrayLike) -> tuple[PyTree, dict[str, Array]]:
        return step(state, jax.tree.map(lambda x: x[index], stack))

    def loop(state: PyTree, stack: PyTree, count: Array) -> tuple[PyTree, dict[str, Array]]:
        def body(index: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            state, metrics = take(carry[0], stack, index)
            return state, jax.tree.map(lambda rows, one: rows.at[index].set(one), carry[1], metrics)

        shapes = jax.eval_shape(take, state, stack, 0)[1]
        empty = jax.tree.map(lambda x: jnp.zeros((limit, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, empty))

    def once(state: PyTree, stack: PyTree, count: Array) -> tuple[PyTree, dict[str, Array]]:
        state, metrics = take(state, stack, 0)
        return state, jax.tree.map(lambda x: x[None], metrics)

    return loop if limit > 1 else once


def skipping(step: Step) -> Step:
    """A step of which nothing is applied, but that it counts, where a metric or a float of the new state is not finite.

    Adds the metrics ``skipped``, 1 or 0, and ``worst_leaf``, the number of the state's float leaf (of `float_leaves`)
    that has the largest share of such elements, or -1. It takes a pass over the state, and room for a second one.
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
    """The leaves of a state that can be NaN or infinite, by their paths."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return {name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
