"""A network's parameters as a safetensors file, for sampling, sharing, and other programs."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jaxai.typing import PyTree


def save_weights(path: Path, params: PyTree) -> None:
    """Write nested dicts of arrays, named by their path such as ``decoder.block_0.mlp.in.kernel``; whole or not at all.

    Names are sorted: equal parameters give equal bytes.
    """
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(safetensors.numpy.save({name: flat[name] for name in sorted(flat)}))
    os.replace(temporary, path)


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name. FileNotFoundError where it is missing, ValueError if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give a safetensors file")
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file or damaged ({error})") from error


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
            raise ValueError(f"{where} holds another model: {name} is {states[0]}, not {states[1]}")
    return jax.tree.unflatten(jax.tree.structure(like), [np.asarray(arrays[name], leaf.dtype) for name, leaf in names])
