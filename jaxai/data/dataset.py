"""The interface of all data sets, and the names of their splits."""

import difflib
from typing import Protocol

from jaxai.errors import UserError

SPLITS = ("train", "test")


class Dataset(Protocol):
    """A split of a data set in memory. Data sets subclass this protocol and add their arrays.

    ``source`` describes in one line where the examples came from; ``embedded`` is true if they ship with the package.
    ``fingerprint`` is a prefix of the SHA-256 of all examples, in hexadecimal; it depends on their order.
    """

    name: str
    source: str
    embedded: bool
    fingerprint: str

    def identity(self) -> dict[str, str | bool]:
        """The values that must match when a run is resumed: name, fingerprint and ``embedded``."""
        return {"name": self.name, "fingerprint": self.fingerprint, "embedded": self.embedded}


def check_split(split: str) -> None:
    """Raise ``ValueError`` unless ``split`` is ``train`` or ``test``."""
    if split not in SPLITS:
        near = difflib.get_close_matches(split.lower(), SPLITS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"split {split!r} is unknown{hint}; choose one of: {', '.join(SPLITS)}")
