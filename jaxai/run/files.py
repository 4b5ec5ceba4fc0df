"""Atomic writing and renaming of files."""

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, safe against a power failure."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def rename_to_free(folder: Path, name: str) -> Path:
    """Rename a folder to the first free sibling among name.1, name.2, ...; return the new path."""
    target = next(path for n in itertools.count(1) if not (path := folder.with_name(f"{name}.{n}")).exists())
    return folder.rename(target)
