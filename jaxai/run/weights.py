"""Network parameters in safetensors files, for sampling, sharing and use by other programs."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jaxai.errors import MissingFileError, UserError
from jaxai.typing import PyTree

KEY = "jaxai"  # of the project's entry in a file's metadata


def save_weights(
    path: Path, params: PyTree, config: Mapping[str, Any], vocabulary: Mapping[str, Any] | None = None
) -> None:
    """Write nested dicts of arrays, named by paths such as ``decoder.block_0.mlp.in.kernel``, to a file, atomically.

    Names are sorted, so that equal parameters give equal bytes. The file's metadata hold a SHA-256 of all arrays, the
    ``config`` of their run as JSON, and the hash of the ``vocabulary`` (JSON values) used in training.
    """
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    known = {"sha256": arrays_hash(flat), "config": config, "vocabulary": vocabulary and fingerprint(vocabulary)}
    metadata = {KEY: json.dumps(known)}  # one key, as safetensors writes several in varying order
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(safetensors.numpy.save({name: flat[name] for name in sorted(flat)}, metadata))
    os.replace(temporary, path)


def load_weights(path: Path, vocabulary: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, by name.

    FileNotFoundError if the file is missing. ValueError if it is damaged, if its arrays don't match the SHA-256 in its
    metadata, or if ``vocabulary`` doesn't match the vocabulary hash there; files without these entries pass.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing: give a safetensors file")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            known = json.loads((file.metadata() or {}).get(KEY, "{}"))
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error})") from error
    if known.get("sha256") not in (None, arrays_hash(arrays)):
        raise UserError(f"{path} is damaged (the SHA-256 of its arrays does not match): use an intact copy")
    if vocabulary is not None and known.get("vocabulary") not in (None, fingerprint(vocabulary)):
        raise UserError(f"{path} was trained with another vocabulary than the one beside it: use both files of one run")
    return arrays


def read_weights(path: Path, like: PyTree, vocabulary: Mapping[str, Any] | None = None) -> PyTree:
    """The arrays of `load_weights` in the structure of ``like``. Raises the errors of `load_weights` and `fill`."""
    return fill(like, load_weights(path, vocabulary), path)


def parameter_count(params: PyTree) -> int:
    """The number of scalars in a network's parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def arrays_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of named arrays, over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def fingerprint(value: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def fill(like: PyTree, arrays: Mapping[str, np.ndarray], where: Path) -> PyTree:
    """Arrange named arrays in the structure of ``like`` (arrays or shapes), cast to its dtypes.

    Raises ValueError naming the first array of the file ``where`` that is missing, unexpected, or of another shape.
    """
    names = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    ]
    wanted = {name: tuple(leaf.shape) for name, leaf in names}
    found = {name: array.shape for name, array in arrays.items()}
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            states = found.get(name, "absent"), wanted.get(name, "absent")
            raise UserError(f"{where} holds another model: {name} is {states[0]}, not {states[1]}")
    return jax.tree.unflatten(jax.tree.structure(like), [np.asarray(arrays[name], leaf.dtype) for name, leaf in names])
