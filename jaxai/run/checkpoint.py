"""Atomic, verified checkpoints: arrays by orbax (version 0), a manifest with the SHA-256 of every file, one rename.

The folder of a run's checkpoints holds ``STEP/state/`` (orbax's files) and ``STEP/manifest.json``. Besides,
``STEP.unfinished`` is an interrupted save, removed at the next start, and ``STEP.corrupt`` a damaged checkpoint, kept
for inspection.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxai.distributed.processes import barrier, first_process
from jaxai.errors import Stopped, UserError, one_line
from jaxai.run.files import rename_to_free, write_json
from jaxai.typing import PyTree

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"


class Damaged(UserError):
    """A file of a checkpoint differs from what was saved; the message names it."""


class Checkpoints:
    """The checkpoints of one run: per step a state (pytree of arrays and typed keys) and the host's values (JSON).

    A checkpoint is written to ``STEP.unfinished``, hashed, flushed to disk and then renamed, so that a folder called
    ``STEP`` was complete when written. A thread writes while training continues, one checkpoint at a time; every other
    method waits for it first, and raises Stopped if it failed. With several processes, `save` writes before it returns,
    since their writers wait for each other; all processes must call every method, and process 0 handles the files and
    broadcasts its findings.

    Kept are the newest ``keep`` checkpoints, the newest ``keep`` at multiples of each number in ``evaluations``, and
    those with the smallest value of each metric in ``lowest`` and the largest of each in ``highest``
    (``host["metrics"]``).
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        *,
        evaluations: Sequence[int] = (),
        lowest: Sequence[str] = (),
        highest: Sequence[str] = (),
    ) -> None:
        self._folder = folder.absolute()
        self._keep, self._evaluations = keep, evaluations
        self._best = [(name, 1) for name in lowest] + [(name, -1) for name in highest]
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        self._writer, self._writing = ThreadPoolExecutor(1, "checkpoint"), None
        if first_process():
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.iterdir():
                if re.fullmatch(r"\d+" + re.escape(UNFINISHED), left.name):
                    shutil.rmtree(left)
        barrier("checkpoints opened")
        self._newest = self._agreed()

    def close(self) -> None:
        """Wait for the writer thread, then shut it down."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._orbax.close()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written. Raises Stopped if it can't be written."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def check(self) -> None:
        """Raise Stopped if the writer has failed, without waiting for it."""
        if self._writing and self._writing.done():
            self.wait()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        self.wait()
        return self._steps()

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        self.wait()
        return self._newest or None

    def _agreed(self) -> int:
        """The newest step that process 0 sees, or 0; on a shared file system other processes may see another."""
        newest = max(self._steps(), default=0) if first_process() else 0
        if jax.process_count() > 1:
            newest = int(multihost_utils.broadcast_one_to_all(np.int64(newest)))
        return newest

    def newest_good(self) -> int | None:
        """The newest step whose files are intact, or None; newer, damaged ones are renamed, with a warning."""
        self.wait()
        if first_process():
            for step in reversed(self._steps()):
                try:
                    verify(self._folder / str(step))
                    break
                except Damaged as error:
                    self._set_aside(step, error)
        barrier("checkpoints verified")
        self._newest = self._agreed()
        return self.latest_step()

    def _set_aside(self, step: int, error: Damaged) -> None:
        """Rename a damaged checkpoint and log a warning."""
        target = set_aside(self._folder / str(step))
        logger.warning("%s: the checkpoint of step %d is damaged and now called %s", error, step, target)

    def drop_after(self, step: int) -> int:
        """Delete the checkpoints of later steps; return the newest remaining step, or 0."""
        self.wait()
        if first_process():
            for later in reversed(self._steps()):
                if later > step:
                    self._drop(later)
        barrier("checkpoints dropped")
        self._newest = self._agreed()
        return self._newest

    def save(self, step: int, state: PyTree, host: dict[str, Any]) -> None:
        """Copy the state and let the writer save it under ``step``; does nothing if that is the newest step saved.

        If the files can't be written, partial files are removed and Stopped is raised, here (several processes) or by
        the next method that waits for the writer.
        """
        self.wait()
        if step == self._newest:
            return
        content_hash(host)  # fail here for values that are not JSON: a bug, not a disk error
        if jax.process_count() > 1:
            self._write(step, key_data(state), host)
        else:
            self._writing = self._writer.submit(self._write, step, copied(state), host)

    def _write(self, step: int, state: PyTree, host: dict[str, Any]) -> None:
        """Write a checkpoint and delete those no longer to be kept. Raises Stopped if the files can't be written."""
        temporary = self._folder / f"{step}{UNFINISHED}"
        try:
            if first_process():
                temporary.mkdir()
            self._orbax.save(temporary / "state", args=ocp.args.StandardSave(state))
            if first_process():
                write_manifest(temporary, host)
                temporary.rename(self._folder / str(step))
                synchronise(self._folder)
        except Exception as error:  # orbax and tensorstore have no type of their own for a full disk
            remove_for_good(temporary)
            # Silence orbax's other writers, which would report the same error after our message.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            raise Stopped(
                f"the checkpoint of step {step} can't be written to {self._folder} ({reason(error)}), that of step "
                f"{self._newest} is the newest: make room, then start the same command again"
            ) from error
        barrier(f"step {step} saved")
        self._newest = step
        self._prune()

    def amend(self, step: int, host: dict[str, Any]) -> None:
        """Update some of the host's values of a saved step."""
        self.wait()
        if first_process():
            folder = self._folder / str(step)
            content = read_manifest(folder)
            store_manifest(folder, {"host": content["host"] | host, "files": content["files"]})

    def restore(self, step: int, like: PyTree, shardings: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The state and the host's values of a step, with the shapes of ``like`` and the given shardings.

        Raises ValueError, naming the folder and the first array that differs, if another model was saved.
        """
        self.wait()
        folder = self._folder / str(step)
        found: Any = self._orbax.metadata(folder / "state").item_metadata
        check_same_model(described(like), described(found.tree), folder)
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(key_data, like),
            shardings,
        )
        restored = self._orbax.restore(folder / "state", args=ocp.args.StandardRestore(target))
        return with_keys(restored, like), read_manifest(folder)["host"]

    def _prune(self) -> None:
        """Delete every checkpoint that the retention policy does not keep."""
        if not first_process():
            return
        steps = self._steps()
        kept = set(steps[-self._keep :])
        for every in self._evaluations:
            kept.update([step for step in steps if step % every == 0][-self._keep :])
        metrics = {step: self._metrics(step) for step in steps} if self._best else {}
        for name, sign in self._best:
            if rated := [step for step in metrics if math.isfinite(metrics[step].get(name, math.nan))]:
                kept.add(min(rated, key=lambda step: sign * metrics[step][name]))
        for step in set(self._steps()) - kept:
            self._drop(step)

    def _metrics(self, step: int) -> dict[str, float]:
        """The metrics of a step; none if its manifest is damaged, in which case the checkpoint is renamed."""
        try:
            return read_manifest(self._folder / str(step))["host"].get("metrics", {})
        except Damaged as error:
            self._set_aside(step, error)
            return {}

    def _drop(self, step: int) -> None:
        """Rename a checkpoint, then delete it, so that a partly deleted one is never taken for complete."""
        shutil.rmtree((self._folder / str(step)).rename(self._folder / f"{step}{UNFINISHED}"))


def remove_for_good(folder: Path) -> None:
    """Remove the files of a failed save, repeatedly for 1 s, as tensorstore's other writers may recreate some."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def is_key(leaf: Any) -> bool:
    """Whether an array, or the shape of one, holds typed keys."""
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_data(state: PyTree) -> PyTree:
    """The state with each typed key replaced by its uint32 data."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, state)


def with_keys(state: PyTree, like: PyTree) -> PyTree:
    """The inverse of `key_data`: restore typed keys where ``like`` (arrays or shapes) has them."""

    def wrap(kind: Any, leaf: Any) -> Any:
        if not is_key(kind):
            return leaf
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(jax.numpy.zeros((), kind.dtype)))

    return jax.tree.map(wrap, like, state)


def copied(state: PyTree) -> PyTree:
    """Copy a state to numpy arrays; those of `jax.device_get` may share memory that the next step overwrites."""
    return jax.tree.map(np.array, jax.device_get(key_data(state)))


def write_manifest(folder: Path, host: dict[str, Any]) -> None:
    """Write the manifest: size and SHA-256 of every file in a folder, the host's values, and a SHA-256 of all these.

    Every file and folder, and the manifest last, is flushed to disk.
    """
    files = {str(path.relative_to(folder)): [path.stat().st_size, file_hash(path)] for path in files_in(folder)}
    for path in folder.rglob("*"):
        synchronise(path)
    store_manifest(folder, {"host": host, "files": files})


def store_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest atomically, and flush it to disk."""
    write_json(folder / MANIFEST, {"sha256": content_hash(content), **content})
    synchronise(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises Damaged, naming the file, if it is missing, unreadable or altered."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content.pop("sha256") == content_hash(content):
            return content
    except OSError as error:
        raise damage(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise Damaged(f"{path} differs from what was written")


def verify(folder: Path) -> None:
    """Raise Damaged, naming the file, unless all files of a checkpoint are intact."""
    expected = read_manifest(folder)["files"]
    found = {str(path.relative_to(folder)): path for path in files_in(folder)}
    for name, (size, digest) in expected.items():
        if name not in found:
            raise Damaged(f"{folder / name} is missing")
        try:
            length, found_digest = found[name].stat().st_size, file_hash(found[name])
        except OSError as error:
            raise damage(found[name], error) from None
        if length != size:
            raise Damaged(f"{found[name]} has {length:,} bytes instead of {size:,}")
        if found_digest != digest:
            raise Damaged(f"{found[name]} differs from what was saved (another SHA-256)")


def damage(path: Path, error: OSError) -> Exception:
    """Damaged for a file that is missing or unreadable; any other error, such as a missing permission, unchanged."""
    if error.errno in (errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return Damaged(f"{path} can't be read ({error.strerror})")
    return error


def files_in(folder: Path) -> Iterator[Path]:
    """All files below a folder except its manifest."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(content: dict[str, Any]) -> str:
    """The SHA-256 of values serialised as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def synchronise(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(folder: Path) -> str:
    """Rename a folder to the first free name among FOLDER.corrupt, FOLDER.corrupt.1, ...; return that name."""
    target = folder.with_name(f"{folder.name}.corrupt")
    return (rename_to_free(folder, target.name) if target.exists() else folder.rename(target)).name


def reason(error: BaseException) -> str:
    """The reason why files can't be written: the system's message if the chain of errors has one."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    known = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES))
    return next((words for words in known if words in str(error)), one_line(error)[:200])


def check_same_model(wanted: dict[str, str], found: dict[str, str], folder: Path) -> None:
    """Raise ValueError naming the first array that differs between the checkpoint and the expected state."""
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{folder} is a checkpoint of another model: {name} is {found.get(name, 'absent')}, not "
                f"{wanted.get(name, 'absent')}: use another --workdir, or --resume never to move the run aside and "
                "start anew"
            )


def described(state: PyTree) -> dict[str, str]:
    """Dtype and shape of each array of a state (arrays, shapes or orbax's metadata), like float32[3, 3], by path."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        leaf = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf  # as keys are saved
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        arrays[name] = f"{jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}"
    return arrays
