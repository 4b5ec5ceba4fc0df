"""Checkpoints: orbax's CheckpointManager (version 0) behind one small interface."""

import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxai.typing import PyTree

TMP_DIR_SUFFIX = ".orbax-checkpoint-tmp"  # orbax's, for what it may clean up


class Checkpoints:
    """The checkpoints of one run: per step a state (pytree of arrays, typed keys too) and what the host knows (JSON).

    Saves are synchronous, so a failed one raises before the next step; the newest ``keep`` stay. What a killed
    save left behind is removed at the next start.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "host": ocp.JsonCheckpointHandler()}
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def close(self) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def drop_after(self, step: int) -> int:
        """Delete the checkpoints of later steps; the step of the newest that is left, or 0.

        Each is first renamed to what a killed save leaves behind, so that no half of it is ever taken for whole.
        """
        if jax.process_index() == 0:
            for later in sorted((found for found in self._manager.all_steps() if found > step), reverse=True):
                doomed = self._folder / f"{later}{TMP_DIR_SUFFIX}"
                (self._folder / str(later)).rename(doomed)
                shutil.rmtree(doomed)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints dropped")
        self._manager.reload()
        return self.latest_step() or 0

    def save(self, step: int, state: PyTree, host: dict[str, Any]) -> None:
        """Save under ``step``; does nothing if that step is there already."""
        if step != self.latest_step():
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
            self._manager.save(step, args=items)

    def restore(self, step: int, like: PyTree, shardings: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The state and the host's values of a step, with the shapes of ``like`` and the given shardings.

        Raises ValueError naming the folder and the first array that differs where another model was saved.
        """
        found = self._manager.item_metadata(step)["state"].tree
        check_same_model(described(like), described(found), self._folder / str(step))
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            like,
            shardings,
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["host"]


def check_same_model(wanted: dict[str, str], found: dict[str, str], folder: Path) -> None:
    """Raise ValueError naming the first array in which the checkpoint in the folder differs from the state wanted."""
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{folder} is a checkpoint of another model: {name} is {found.get(name, 'absent')}, not "
                f"{wanted.get(name, 'absent')}: use another --workdir, or --resume never to move the run aside and "
                "start anew"
            )


def described(state: PyTree) -> dict[str, str]:
    """Each array of a state (arrays, shapes or orbax's metadata) by its path, such as float32[3, 3, 1, 32]."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # so they are saved
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        arrays[name] = f"{jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}"
    return arrays
