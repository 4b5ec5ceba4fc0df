"""The data sets that need neither files nor a network: 5,000 shipped MNIST digits and scikit-learn's 8x8 digits."""

import hashlib
import io
from importlib import resources

import numpy as np

from jaxai.data.specs import SPECS, Arrays, check_arrays, permutation

MNIST_FILE = "mnist_5k.npz"  # files/README.md: origin and licence; files/make_mnist_5k.py makes it
MNIST_SHA256 = "3e63986ee8d54a175bb7260d8a95b5b524e901f7dd0bf662328afbeeac176a54"
MNIST_TRAIN = 4_500


def mnist(split: str) -> Arrays:
    """The shipped MNIST digits: uint8 [4500 or 500, 28, 28, 1] and int32 labels, the classes equally many.

    Raises ``FileNotFoundError`` or ``OSError`` where the shipped file is missing or damaged.
    """
    source = resources.files("jaxai.data") / "files" / MNIST_FILE
    again = "install jaxai again"
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: the embedded digits are missing; {again}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != MNIST_SHA256:
        raise OSError(
            f"{source}: the embedded digits are damaged (SHA-256 {digest[:12]}..., expected {MNIST_SHA256[:12]}...);"
            f" {again}"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    rows = slice(None, MNIST_TRAIN) if split == "train" else slice(MNIST_TRAIN, None)
    return check_arrays(images[rows, ..., None], labels[rows], SPECS["mnist"], str(source))


def digits8x8(split: str) -> Arrays:
    """scikit-learn's digits in a fixed shuffled order: uint8 [1500 or 297, 8, 8, 1], scaled from 0...16 to 0...255."""
    from sklearn.datasets import load_digits  # imported here: it takes 1 s, and only this set needs it

    bunch = load_digits()
    spec = SPECS["digits8x8"]
    order = permutation(len(bunch.target), 0)  # pyright: ignore[reportAttributeAccessIssue]
    rows = order[: spec.counts["train"]] if split == "train" else order[spec.counts["train"] :]
    images = np.rint(bunch.images[rows, ..., None] * (255 / 16)).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    return check_arrays(images, bunch.target[rows], spec, "scikit-learn's load_digits")  # pyright: ignore[reportAttributeAccessIssue]
