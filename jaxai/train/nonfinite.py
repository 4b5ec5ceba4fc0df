"""Non-finite values during training: report them, then abort, skip the step or roll back."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxai.errors import Rollback
from jaxai.run.files import write_json
from jaxai.run.folder import Run
from jaxai.train.compiled_step import SKIPPED, WORST, float_leaves
from jaxai.typing import Array, PyTree

logger = logging.getLogger(__name__)

Policy = Literal["abort", "skip", "rollback"]
LIMIT = 10  # consecutive skipped steps at which training stops


@dataclasses.dataclass(frozen=True)
class CallResult:
    """Result of one call: ``count`` steps after step ``done``, their metrics on the device, their examples' ids."""

    done: int
    count: int
    metrics: Mapping[str, Array]
    ids: list[Any]


class NonFiniteMonitor:
    """Fetch the metrics of steps, report non-finite ones in ``nonfinite.json``, and act on them by a policy.

    ``abort`` raises FloatingPointError; ``rollback`` raises Rollback; ``skip`` (with steps from `skip_nonfinite`)
    warns, and raises FloatingPointError at the tenth skipped step in a row.
    """

    def __init__(self, run: Run, policy: Policy) -> None:
        self._run, self._policy, self._in_a_row = run, policy, 0

    def rows(self, taken: CallResult, state: PyTree) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield (step, finite metrics) of a call. ``state``, used for the report, may be that of a later step."""
        columns = jax.device_get(dict(taken.metrics))
        for row in range(taken.count):
            step, values = taken.done + row + 1, {name: float(column[row]) for name, column in columns.items()}
            worst = int(values.pop(WORST, -1.0))
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            if not bad and not values.get(SKIPPED):
                self._in_a_row = 0
            else:
                if SKIPPED in values:
                    leaves = {list(float_leaves(state))[worst]: None} if worst >= 0 else {}
                else:
                    leaves = leaves_not_finite(state)
                self._report(step, values, bad, leaves, taken.ids[row])
                self._act(step, f"{bad[0]} is {values[bad[0]]}" if bad else f"{next(iter(leaves))} is not finite")
                values = {name: value for name, value in values.items() if name not in bad}
            yield step, values

    def _report(
        self, step: int, values: dict[str, float], bad: list[str], leaves: Mapping[str, int | None], ids: Any
    ) -> None:
        report = {
            "step": step,
            "batch": step - 1,
            "not_finite": bad,
            "metrics": {name: repr(value) for name, value in values.items()},
            "worst_leaf": next(iter(leaves), None),
            "leaves": leaves,
            "ids": None if ids is None else np.asarray(ids).reshape(-1).tolist(),
        }
        write_json(self._run.folder / "nonfinite.json", report)

    def _act(self, step: int, what: str) -> None:
        message = f"{what} at step {step}, see {self._run.folder / 'nonfinite.json'}"
        if self._policy == "rollback":
            raise Rollback(message, last_good_step=step - 1)
        self._in_a_row += 1
        if self._policy == "abort":
            advice = "lower the learning rate and start again with --resume never, or go on with --on-nonfinite skip"
            raise FloatingPointError(f"{message}: {advice}")
        if self._in_a_row == LIMIT:
            raise FloatingPointError(f"{message}: {LIMIT} steps in a row are skipped; lower the learning rate")
        logger.warning("%s: the step is skipped", message)


def leaves_not_finite(state: PyTree) -> dict[str, int | None]:
    """The number of non-finite elements of each float leaf that has any, largest share first."""
    leaves = float_leaves(state)
    counts = {name: int(leaf.size - jnp.isfinite(leaf).sum()) for name, leaf in leaves.items()}
    worst_first = sorted(counts, key=lambda name: -counts[name] / max(leaves[name].size, 1))
    return {name: counts[name] for name in worst_first if counts[name]}
