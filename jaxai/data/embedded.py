"""The embedded data sets, which need no download: MNIST digits, scikit-learn's digits, plays, sentence pairs."""

import gzip
import hashlib
import io
from importlib import resources

import numpy as np

from jaxai.data.images.specs import SPECS, Arrays, check_arrays
from jaxai.data.random import permutation
from jaxai.errors import DamagedFileError, MissingFileError, UserError

MNIST_FILE = "mnist_5k.npz"  # made by tools/make_mnist_5k.py; origin and licence: files/README.md
MNIST_SHA256 = "3e63986ee8d54a175bb7260d8a95b5b524e901f7dd0bf662328afbeeac176a54"
MNIST_TRAIN = 4_500
TEXT_FILE = "shakespeare.txt.gz"  # made by tools/make_shakespeare.py
TEXT_SHA256 = "7d7bf4395d61eedbe42d728f3365289a3087b3cf49b140e91376617559c1d1f9"
PAIRS_FILE = "libreoffice.tsv.gz"  # made by tools/make_libreoffice.py
PAIRS_SHA256 = "b4a346a6e7bd443fc16239f8e1e1e1676cc4ac7ff31d31949c683711a14171b9"
PAIRS_SPLITS = ("train", "val", "test")
LANGUAGES = ("en", "de", "fr")


def mnist(split: str) -> Arrays:
    """The shipped MNIST digits: uint8 [4500 or 500, 28, 28, 1] and int32 labels, with balanced classes.

    Raises ``FileNotFoundError`` or ``OSError`` if the shipped file is missing or damaged.
    """
    source, content = _shipped(MNIST_FILE, MNIST_SHA256, "digits")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    rows = slice(None, MNIST_TRAIN) if split == "train" else slice(MNIST_TRAIN, None)
    return check_arrays(images[rows, ..., None], labels[rows], SPECS["mnist"], source)


def digits8x8(split: str) -> Arrays:
    """scikit-learn's digits in a fixed shuffled order: uint8 [1500 or 297, 8, 8, 1], scaled from 0...16 to 0...255."""
    from sklearn.datasets import load_digits  # imported here: the import takes 1 s, and only this set needs it

    bunch = load_digits()
    spec = SPECS["digits8x8"]
    order = permutation(len(bunch.target), 0)  # pyright: ignore[reportAttributeAccessIssue]
    rows = order[: spec.counts["train"]] if split == "train" else order[spec.counts["train"] :]
    images = np.rint(bunch.images[rows, ..., None] * (255 / 16)).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    return check_arrays(images, bunch.target[rows], spec, "scikit-learn's load_digits")  # pyright: ignore[reportAttributeAccessIssue]


def shakespeare() -> str:
    """Eight plays of Shakespeare in ASCII: 1,076,592 characters, 68 distinct ones; errors as in ``mnist``."""
    return gzip.decompress(_shipped(TEXT_FILE, TEXT_SHA256, "plays")[1]).decode("ascii")


def libreoffice(split: str, source: str, target: str) -> list[tuple[str, str]]:
    """LibreOffice's interface texts in two of English, German and French: 6,688 train, 500 val, 500 test pairs.

    No two rows share a sentence in any language, ignoring case, punctuation and numbers. Raises ``ValueError`` for an
    unknown split or language and for two equal languages; other errors as in ``mnist``.
    """
    for name, value, known in (
        ("split", split, PAIRS_SPLITS),
        ("source", source, LANGUAGES),
        ("target", target, LANGUAGES),
    ):
        if value not in known:
            raise UserError(f"{name} {value!r} is not in the embedded pairs; choose one of: {', '.join(known)}")
    if source == target:
        raise UserError(f"source and target are both {source!r}; choose two of: {', '.join(LANGUAGES)}")
    text = gzip.decompress(_shipped(PAIRS_FILE, PAIRS_SHA256, "sentence pairs")[1]).decode()
    header, *rows = (line.split("\t") for line in text.removesuffix("\n").split("\n"))
    columns = header.index(source), header.index(target)
    return [(row[columns[0]], row[columns[1]]) for row in rows if row[0] == split]


def _shipped(name: str, sha256: str, what: str) -> tuple[str, bytes]:
    """The path and the content of a shipped file, after verifying its SHA-256."""
    source = resources.files("jaxai.data") / "files" / name
    again = "install jaxai again"
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{source}: the embedded {what} are missing; {again}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise DamagedFileError(
            f"{source}: the embedded {what} are damaged (SHA-256 {digest[:12]}..., expected {sha256[:12]}...); {again}"
        )
    return str(source), content
