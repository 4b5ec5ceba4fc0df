"""A run is a folder with its config, metrics, checkpoints, weights, pictures and summary."""

from jaxai.run.card import write_card as write_card
from jaxai.run.checkpoint import Checkpoints as Checkpoints
from jaxai.run.finished import FinishedRun as FinishedRun
from jaxai.run.finished import load_run as load_run
from jaxai.run.folder import Run as Run
from jaxai.run.folder import open_run as open_run
from jaxai.run.weights import load_weights as load_weights
from jaxai.run.weights import parameter_count as parameter_count
from jaxai.run.weights import read_weights as read_weights
from jaxai.run.weights import save_weights as save_weights
