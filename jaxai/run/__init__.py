"""A run is a folder: config, metrics, checkpoints, samples, summary, weights, model card."""

from jaxai.run.finished import FinishedRun as FinishedRun
from jaxai.run.finished import load_run as load_run
from jaxai.run.folder import Run as Run
