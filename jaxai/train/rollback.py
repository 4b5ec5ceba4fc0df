"""Roll back to the last good checkpoint and resume with a new key."""

import json
import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxai.distributed.processes import first_process
from jaxai.errors import Rollback, Stopped, UserError
from jaxai.run.checkpoint import Checkpoints
from jaxai.run.files import write_json
from jaxai.run.folder import Run
from jaxai.typing import PyTree

logger = logging.getLogger(__name__)


LIMIT = 3  # rollbacks per run; one more stops it


def roll_back(run: Run, checkpoints: Checkpoints, rollback: Rollback, rollbacks: list[dict[str, Any]]) -> None:
    """Delete the checkpoints after the last good step; record and log the rollback. Raises Stopped at the fourth."""
    if len(rollbacks) == LIMIT:
        raise Stopped(f"{rollback}; already rolled back {LIMIT} times (rollbacks.json): change the training options")
    good = rollback.last_good_step
    if jax.process_count() > 1:  # process 0 decides: it has all of the run's metrics
        good = int(multihost_utils.broadcast_one_to_all(np.int32(good)))
    to = checkpoints.drop_after(good)
    rollbacks.append({"reason": str(rollback), "to": to})
    if first_process():
        write_json(run.shared / "rollbacks.json", {"rollbacks": rollbacks})
    logger.warning("%s: rolled back to step %d, resuming with a new key", rollback, to)


def read_rollbacks(run: Run) -> list[dict[str, Any]]:
    """The run's rollbacks so far: the ``reason`` of each and the step ``to`` which it went. ValueError if damaged."""
    path = run.shared / "rollbacks.json"
    if not path.exists():
        return []
    try:
        rollbacks = json.loads(path.read_bytes())["rollbacks"]
        if all(isinstance(entry["reason"], str) and isinstance(entry["to"], int) for entry in rollbacks):
            return rollbacks
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{path} is damaged: --resume never moves the run aside and starts anew")


def with_new_keys(state: PyTree, number: int) -> PyTree:
    """The state with each typed key replaced by a new one; every ``number`` >= 1 gives different keys."""
    fold = partial(jax.random.fold_in, data=2**32 - 1 - number)  # no step has such a number

    def other(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.vmap(fold)(leaf) if leaf.ndim else fold(leaf)

    return jax.tree.map(other, state)
