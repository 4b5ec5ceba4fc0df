"""The watch for mode collapse that GAN experiments share: warn, stop, or go back and try other noise."""

import dataclasses
import json
import logging
from typing import Literal

import numpy as np
from jaxtyping import Int, Num

from jaxai.config import Training, resumable
from jaxai.errors import Rollback, Stopped
from jaxai.metrics.diversity import effective_classes, pairwise_distance
from jaxai.run.folder import Run

logger = logging.getLogger(__name__)

HALF = 0.5
"""Collapsed is what differs less than half as much as real examples do, or has less than half of their classes."""
MEANING = {
    "relative_distance": "its samples lie {:.2f} as far apart as real ones",
    "relative_classes": "it makes {:.2f} as many classes as there are",
}
Labels = Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollapseConfig(Training):
    """Options of experiments whose generator is watched."""

    on_collapse: Literal["warn", "stop", "rollback"] = resumable("warn")
    """Action when the generator's diversity falls below half of the real examples'; rollback goes back to the
    last checkpoint before that and on with other noise, three times."""
    collapse_after: int = resumable(1000)
    """From which step on: at first every generator makes one thing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "collapse_after")

    @property
    def save_evaluations(self) -> bool:
        """Whether there is a checkpoint at each evaluation: where the best stay, or a collapse leads back to one."""
        return super().save_evaluations or self.on_collapse == "rollback"


class CollapseMonitor:
    """Compare the diversity of generated and real examples, and act on a collapse as the config says.

    ``real`` [n, ...] are as many as are generated, with their ``labels`` [n] where there is a classifier.
    """

    def __init__(self, config: CollapseConfig, real: Num[np.ndarray, "n ..."], labels: Labels | None = None) -> None:
        self._config = config
        self._distance = pairwise_distance(real)
        self._classes = None if labels is None else effective_classes(labels)
        self._warned = False

    def measure(self, samples: Num[np.ndarray, "n ..."], labels: Labels | None = None) -> dict[str, float]:
        """``relative_distance``, the mean distance between two samples over that of real ones, and with labels
        ``relative_classes``, the same of `effective_classes`.
        """
        found = {"relative_distance": pairwise_distance(samples) / self._distance}
        if self._classes is not None and labels is not None:
            found["relative_classes"] = effective_classes(labels) / self._classes
        return found

    def act(self, run: Run, step: int, found: dict[str, float]) -> dict[str, float]:
        """Return the measurements. On a collapse warn once until it is over, or raise Stopped or Rollback."""
        signs = [MEANING[name].format(value) for name, value in found.items() if value < HALF]
        if not signs or step < self._config.collapse_after:
            self._warned = False
            return found
        message = f"step {step}: the generator has collapsed: {' and '.join(signs)}"
        if self._config.on_collapse == "stop":
            raise Stopped(message)
        if self._config.on_collapse == "rollback":
            raise Rollback(message, last_good_step=last_good_step(run))
        if not self._warned:
            logger.warning("%s; --on-collapse stop or rollback would do something about it", message)
        self._warned = True
        return found


def last_good_step(run: Run) -> int:
    """The last step of the run's metrics whose samples were as varied as they should be; 0 without one."""
    good = 0
    for line in run.metrics.read_text().splitlines():
        row = json.loads(line)
        found = [row[name] for name in MEANING if name in row]
        if found and min(found) >= HALF:
            good = row["step"]
    return good
