"""``python -m jaxai.data prepare NAME --from DIR`` and ``python -m jaxai.data show NAME``."""

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxai import cli
from jaxai.data import load
from jaxai.data.images import prepare, tfds


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Write the standard tensorflow-datasets folder from official files, without TensorFlow or a network."""

    name: tyro.conf.Positional[str]
    """mnist, fashion_mnist or cifar10."""
    source: Annotated[Path, tyro.conf.arg(name="from")]
    """Folder with the official files as downloaded (four idx.gz, or cifar-10-binary.tar.gz); checksums are verified."""
    data_dir: Path | None = None
    """Output folder; the default is tensorflow-datasets' own (TFDS_DATA_DIR, else ~/tensorflow_datasets)."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Load a split and print its source, shape and fingerprint."""

    name: tyro.conf.Positional[str]
    """mnist, fashion_mnist, cifar10 or digits8x8."""
    split: str = "train"
    """train or test."""
    data_dir: Path | None = None
    """The only folder to search; by default tensorflow-datasets' folder, the network, then the embedded set."""


def run(asked: Prepare | Show) -> str:
    """Execute the command and return the text to print."""
    if isinstance(asked, Show):
        dataset = load(asked.name, asked.split, data_dir=asked.data_dir)
        return f"{dataset.source}\nimages {list(dataset.images.shape)}, fingerprint {dataset.fingerprint}"
    data_dir = (asked.data_dir or tfds.default_dir()).expanduser()
    existing = tfds.prepared_folder(asked.name, data_dir)
    folder = prepare.prepare(asked.name, asked.source.expanduser(), data_dir)
    return f"{folder}: already prepared, left as it is" if existing else f"{folder}: prepared {asked.name}"


def main() -> None:
    """Run the command line: exit code 0, or 2 with one line on stderr."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # raises SystemExit, so an unfinished folder is removed
    options = {"prog": "python -m jaxai.data", "description": __doc__}
    cli.guard(lambda: print(run(cli.read(Prepare | Show, sys.argv[1:], **options))))


if __name__ == "__main__":
    main()
