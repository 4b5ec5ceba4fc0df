"""``load``, the entry point for image data sets, and the order in which it searches their sources."""

import dataclasses
import hashlib
import logging
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from jaxai.data import embedded
from jaxai.data.dataset import Dataset, check_split
from jaxai.data.images import official as official
from jaxai.data.images import prepare as prepare
from jaxai.data.images import tfds as tfds
from jaxai.data.images.specs import Arrays, Spec, spec_of
from jaxai.errors import MissingFileError, UserError

logger = logging.getLogger("jaxai.data")


@dataclasses.dataclass(frozen=True)
class ImageDataset(Dataset):
    """Labelled images, read-only: ``images`` uint8 [n, height, width, C], ``labels`` int32 [n] < ``num_classes``."""

    name: str
    split: str
    images: UInt8[np.ndarray, "n height width C"]
    labels: Int32[np.ndarray, " n"]
    num_classes: int
    source: str
    embedded: bool
    fingerprint: str


def load(
    name: str, split: str, *, data_dir: str | os.PathLike | None = None, embedded_only: bool = False
) -> ImageDataset:
    """Load the split ``train`` or ``test`` of ``mnist``, ``fashion_mnist``, ``cifar10`` or ``digits8x8``.

    The first available source is used: a prepared tensorflow-datasets folder (under ``data_dir``, else in
    ``TFDS_DATA_DIR`` or ~/tensorflow_datasets; ArrayRecord format); the official files under ``data_dir``; the network;
    the embedded set (5,000 digits of MNIST). With a ``data_dir`` nothing outside it is used. ``digits8x8`` always comes
    from scikit-learn. ``embedded_only`` skips all other sources: use it if the other split is embedded, or to resume a
    run that started on the embedded set. The source is logged in one line (logger ``jaxai.data``).

    Raises ``ValueError`` for an unknown name or split and for damaged, mislabelled or misshapen files,
    ``FileNotFoundError`` if no source has the data set, ``OSError`` for a damaged prepared folder. A missing network is
    detected within 3 s.
    """
    spec = spec_of(name)
    check_split(split)
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if folder is not None and not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise MissingFileError(
            f"data_dir (--data-dir) {folder} {state}; give the folder that holds {name}'s files, or leave it out"
        )
    found = None if embedded_only or name == "digits8x8" else _find(spec, split, folder)
    (images, labels), where = found or _embedded(spec, split)
    images.setflags(write=False)
    labels.setflags(write=False)
    source = f"{name} {split}: {len(labels):,} {where}"
    logger.info(source)
    fingerprint = hashlib.sha256(np.ascontiguousarray(images))
    fingerprint.update(labels)
    return ImageDataset(
        name, split, images, labels, spec.num_classes, source, found is None, fingerprint.hexdigest()[:16]
    )


def _find(spec: Spec, split: str, folder: Path | None) -> tuple[Arrays, str] | None:
    """The arrays and the end of the source line; None if only the embedded set remains."""
    root = tfds.default_dir() if folder is None else folder
    prepared = tfds.prepared_folder(spec.name, root)
    if prepared is not None:
        return tfds.read_prepared(spec, split, prepared), f"images from the prepared folder {prepared}"
    if folder is not None:
        paths = official.find_official(spec.name, split, folder)
        if paths is None:
            raise MissingFileError(_not_under(spec.name, split, folder))
        return official.read_official(spec, split, paths), f"images from the official files in {paths[0].parent}"
    failure = "no network"
    if prepare.reachable(spec.name):
        logger.info(f"{spec.name}: downloading to {root}")
        try:
            prepared = prepare.prepare(spec.name, None, root)
            return tfds.read_prepared(spec, split, prepared), f"images downloaded to {prepared}"
        except (OSError, ValueError) as error:
            failure = str(error)
    if spec.name != "mnist":
        raise MissingFileError(_nowhere(spec.name, root, failure))
    if failure != "no network":
        logger.warning(f"mnist: download failed, continuing with the embedded digits: {failure}")
    return None


def _embedded(spec: Spec, split: str) -> tuple[Arrays, str]:
    """The embedded arrays and the end of the source line. ValueError if the data set is not embedded."""
    if spec.name == "digits8x8":
        return embedded.digits8x8(split), "embedded 8x8 digits (scikit-learn)"
    if spec.name == "mnist":
        count = f"{spec.counts[split]:,}"
        return embedded.mnist(split), f"embedded digits (subset of MNIST; for all {count} pass --data-dir)"
    raise UserError(f"embedded_only: the package carries no {spec.name}, only mnist and digits8x8; leave it out")


def _not_under(name: str, split: str, folder: Path) -> str:
    """The message for a folder without the data set."""
    files = ", ".join(official.expected_files(name, split))
    hint = ""
    if name == "cifar10":
        places = (folder, folder / name)
        if any((place / official.CIFAR_ARCHIVE).is_file() for place in places):
            hint = f" {official.CIFAR_ARCHIVE} is there: prepare it with the command below."
        elif any(
            (p / f).exists() for p in places for f in ("cifar-10-batches-py", "data_batch_1", "cifar-10-python.tar.gz")
        ):
            hint = " The python version (pickles) is there, but is never read: fetch the binary version."
        files += f" (CIFAR-10's binary version, also in {official.CIFAR_FOLDER}/)"
    else:
        files += " (also .gz)"
    return (
        f"{folder}: neither a prepared folder {name}/<version>/ in ArrayRecord format nor the official files"
        f" {files}, also in a subfolder {name}.{hint} Put the official files there, or prepare them with"
        f" `python -m jaxai.data prepare {name} --from DIR --data-dir {folder}`, or leave --data-dir out to look"
        " elsewhere"
    )


def _nowhere(name: str, root: Path, failure: str) -> str:
    """The message for a data set that is neither on this machine nor downloadable."""
    files = official.CIFAR_ARCHIVE if name == "cifar10" else "the four official idx.gz files"
    return (
        f"{name}: not in {root}, and cannot be downloaded ({failure}). Three ways out: connect to the network (proxies:"
        f" HTTPS_PROXY) and run again; or pass --data-dir DIR with the official files; or take {files} to this machine"
        f" and run `python -m jaxai.data prepare {name} --from DIR`"
    )
