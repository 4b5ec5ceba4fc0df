"""The data that needs neither files nor a network: shipped MNIST digits, scikit-learn's digits, eight plays."""

import gzip
import hashlib
import io
from importlib import resources

import numpy as np

from jaxai.data.specs import SPECS, Arrays, check_arrays, permutation

MNIST_FILE = "mnist_5k.npz"  # files/README.md: origin and licence; files/make_mnist_5k.py makes it
MNIST_SHA256 = "3e63986ee8d54a175bb7260d8a95b5b524e901f7dd0bf662328afbeeac176a54"
MNIST_TRAIN = 4_500
TEXT_FILE = "shakespeare.txt.gz"  # files/make_shakespeare.py makes it
TEXT_SHA256 = "7d7bf4395d61eedbe42d728f3365289a3087b3cf49b140e91376617559c1d1f9"


def mnist(split: str) -> Arrays:
    """The shipped MNIST digits: uint8 [4500 or 500, 28, 28, 1] and int32 labels, the classes equally many.

    Raises ``FileNotFoundError`` or ``OSError`` where the shipped file is missing or damaged.
    """
    source, content = _shipped(MNIST_FILE, MNIST_SHA256, "digits")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    rows = slice(None, MNIST_TRAIN) if split == "train" else slice(MNIST_TRAIN, None)
    return check_arrays(images[rows, ..., None], labels[rows], SPECS["mnist"], source)


def digits8x8(split: str) -> Arrays:
    """scikit-learn's digits in a fixed shuffled order: uint8 [1500 or 297, 8, 8, 1], scaled from 0...16 to 0...255."""
    from sklearn.datasets import load_digits  # imported here: it takes 1 s, and only this set needs it

    bunch = load_digits()
    spec = SPECS["digits8x8"]
    order = permutation(len(bunch.target), 0)  # pyright: ignore[reportAttributeAccessIssue]
    rows = order[: spec.counts["train"]] if split == "train" else order[spec.counts["train"] :]
    images = np.rint(bunch.images[rows, ..., None] * (255 / 16)).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    return check_arrays(images, bunch.target[rows], spec, "scikit-learn's load_digits")  # pyright: ignore[reportAttributeAccessIssue]


def shakespeare() -> str:
    """Eight plays of Shakespeare in ASCII, 1,076,592 characters, 68 different ones; errors as in ``mnist``."""
    return gzip.decompress(_shipped(TEXT_FILE, TEXT_SHA256, "plays")[1]).decode("ascii")


def _shipped(name: str, sha256: str, what: str) -> tuple[str, bytes]:
    """The path and the content of a shipped file that is as it was made."""
    source = resources.files("jaxai.data") / "files" / name
    again = "install jaxai again"
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: the embedded {what} are missing; {again}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise OSError(
            f"{source}: the embedded {what} are damaged (SHA-256 {digest[:12]}..., expected {sha256[:12]}...); {again}"
        )
    return str(source), content
