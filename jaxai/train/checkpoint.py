"""Checkpoints: orbax's CheckpointManager (version 0) behind one small interface."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxai.typing import PyTree


class Checkpoints:
    """The checkpoints of one run: per step a state (pytree of arrays, typed keys too) and what the host knows (JSON).

    Saves are synchronous, so a failed one raises before the next step; the newest ``keep`` stay. What a killed
    save left behind is removed at the next start.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def close(self) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, host: dict[str, Any]) -> None:
        """Save under ``step``; does nothing if that step is there already."""
        if step != self.latest_step():
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
            self._manager.save(step, args=items)

    def restore(self, step: int, like: PyTree, shardings: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The state and the host's values of a step, with the shapes of ``like`` and the given shardings."""
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            like,
            shardings,
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["host"]
