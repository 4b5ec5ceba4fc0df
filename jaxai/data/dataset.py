"""The contract of data sets."""

import difflib

SPLITS = ("train", "test")


def check_split(split: str) -> None:
    """Raise ``ValueError`` unless ``split`` is ``train`` or ``test``."""
    if split not in SPLITS:
        near = difflib.get_close_matches(split.lower(), SPLITS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"split {split!r} is unknown{hint}; choose one of: {', '.join(SPLITS)}")
