"""Detection of mode collapse during GAN training: warn, stop, or roll back and resume with a new key."""

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
"""A generator counts as collapsed when its diversity falls below this share of the real examples'."""
MEANING = {
    "relative_distance": "its samples lie {:.2f} as far apart as real ones",
    "relative_classes": "it makes {:.2f} as many classes as there are",
}
Labels = Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollapseConfig(Training):
    """Options of experiments that monitor their generator for mode collapse."""

    on_collapse: Literal["warn", "stop", "rollback"] = resumable("warn")
    """Action when the generator's diversity falls below half of the real examples'; rollback returns to the last
    checkpoint before that and resumes with a new key, at most three times."""
    collapse_after: int = resumable(1000)
    """First step at which to act on a collapse: early in training every generator's samples are alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "collapse_after")

    @property
    def save_evaluations(self) -> bool:
        """Whether to save a checkpoint at each evaluation: to keep the best ones, or to roll back to one."""
        return super().save_evaluations or self.on_collapse == "rollback"


class CollapseMonitor:
    """Compare the diversity of generated and real examples, and take the config's action on a collapse.

    ``real`` [n, ...] has as many examples as are generated; ``labels`` [n] are their classes, if there is a classifier.
    """

    def __init__(self, config: CollapseConfig, real: Num[np.ndarray, "n ..."], labels: Labels | None = None) -> None:
        self._config = config
        self._distance = pairwise_distance(real)
        self._classes = None if labels is None else effective_classes(labels)
        self._warned = False

    def measure(self, samples: Num[np.ndarray, "n ..."], labels: Labels | None = None) -> dict[str, float]:
        """Diversity relative to the real examples: ``relative_distance`` is the ratio of the mean pairwise distances,
        ``relative_classes``, if there are labels, the ratio of the `effective_classes`.
        """
        found = {"relative_distance": pairwise_distance(samples) / self._distance}
        if self._classes is not None and labels is not None:
            found["relative_classes"] = effective_classes(labels) / self._classes
        return found

    def act(self, run: Run, step: int, found: dict[str, float]) -> dict[str, float]:
        """Return ``found``. On a collapse, warn once until it ends, or raise Stopped or Rollback."""
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
            logger.warning("%s; --on-collapse stop or rollback would react to it", message)
        self._warned = True
        return found


def last_good_step(run: Run) -> int:
    """The last evaluated step at which the generator had not collapsed, from the run's metrics; 0 if there is none."""
    good = 0
    for line in run.metrics.read_text().splitlines():
        row = json.loads(line)
        found = [row[name] for name in MEANING if name in row]
        if found and min(found) >= HALF:
            good = row["step"]
    return good
