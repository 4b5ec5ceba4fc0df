"""Loading finished runs, for the commands that use one."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxai.config import Finished
from jaxai.errors import MissingFileError, UserError
from jaxai.run.folder import config_from_json, read_config, run_folder
from jaxai.run.weights import read_weights
from jaxai.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class FinishedRun[ConfigT]:
    """A finished run: its ``folder``, its ``config``, config.json as ``identity``, and vocabulary.json, if loaded."""

    folder: Path
    config: ConfigT
    identity: Mapping[str, Any]
    vocabulary: Mapping[str, Any] | None

    def decode[T](self, read: Callable[[Any], T]) -> T:
        """Decode the vocabulary with ``read``. ValueError if it is damaged or belongs to another experiment."""
        try:
            return read(self.vocabulary)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(not_ours(self.folder, error)) from error

    def params(self, init_params: Callable[[Array], PyTree]) -> PyTree:
        """The trained parameters, structured as ``init_params(key)``. ValueError if they don't fit or are damaged."""
        shapes = jax.eval_shape(init_params, jax.random.key(0))
        return read_weights(self.folder / "model.safetensors", shapes, self.vocabulary)


def load_run[ConfigT](
    experiment: str, kind: type[ConfigT], options: Finished, *, vocabulary: bool = False
) -> FinishedRun[ConfigT]:
    """Load the finished run that a command's options name.

    FileNotFoundError if a file is missing; ValueError if one is damaged or belongs to another experiment.
    """
    folder = run_folder(experiment, options)
    for name in ("config.json", *["vocabulary.json"] * vocabulary, "model.safetensors"):
        if not (folder / name).is_file():
            raise MissingFileError(f"{folder} holds no finished run (no {name}): train one first, or give --workdir")
    identity = read_config(folder)
    try:
        config = config_from_json(kind, identity)
        words = json.loads((folder / "vocabulary.json").read_text()) if vocabulary else None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(not_ours(folder, error)) from error
    return FinishedRun(folder, config, identity, words)


def not_ours(folder: Path, error: Exception) -> str:
    """The message for a folder whose files don't belong to this experiment."""
    return f"{folder} holds no run of this experiment, or a damaged vocabulary.json ({error}): train one first"
