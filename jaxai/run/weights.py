"""A network's parameters as a safetensors file, for sampling, sharing, and other programs."""

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

KEY = "jaxai"  # under which a file's metadata say what is known of it


def save_weights(
    path: Path, params: PyTree, config: Mapping[str, Any], vocabulary: Mapping[str, Any] | None = None
) -> None:
    """Write nested dicts of arrays, named by their path such as ``decoder.block_0.mlp.in.kernel``; whole or not at all.

    Names are sorted: equal parameters give equal bytes. The file's metadata hold a SHA-256 of all arrays, the
    ``config`` of their run as JSON, and the hash of the ``vocabulary`` (JSON values) that they were trained with.
    """
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    known = {"sha256": arrays_hash(flat), "config": config, "vocabulary": vocabulary and fingerprint(vocabulary)}
    metadata = {KEY: json.dumps(known)}  # one key: of several, safetensors writes another first each time
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(safetensors.numpy.save({name: flat[name] for name in sorted(flat)}, metadata))
    os.replace(temporary, path)


def load_weights(path: Path, vocabulary: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name.

    FileNotFoundError where it is missing. ValueError if it is damaged, where its arrays have another SHA-256 than it
    says, and where it names the hash of a vocabulary that is not that of ``vocabulary``.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing: give a safetensors file")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            known = json.loads((file.metadata() or {}).get(KEY, "{}"))
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no safetensors file or damaged ({error})") from error
    if known.get("sha256") not in (None, arrays_hash(arrays)):
        raise UserError(f"{path} is damaged (its arrays have another SHA-256): take a good copy")
    if vocabulary is not None and known.get("vocabulary") not in (None, fingerprint(vocabulary)):
        raise UserError(f"{path} was trained with another vocabulary than the one beside it: take both of one run")
    return arrays


def read_weights(path: Path, like: PyTree, vocabulary: Mapping[str, Any] | None = None) -> PyTree:
    """`load_weights` in the structure and shapes of ``like``, see `fill`. Raises as both do."""
    return fill(like, load_weights(path, vocabulary), path)


def parameter_count(params: PyTree) -> int:
    """Numbers in a network's parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def arrays_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of named arrays: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def fingerprint(value: Mapping[str, Any]) -> str:
    """The start of the SHA-256 of JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def fill(like: PyTree, arrays: Mapping[str, np.ndarray], where: Path) -> PyTree:
    """The arrays in the structure and shapes of ``like`` (arrays or their shapes).

    Raises ValueError naming the first array of ``where`` that is missing, of another shape, or too many.
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
