"""Prepare tensorflow-datasets' standard folders without TensorFlow, from official files or from the network."""

import contextlib
import importlib.util
import io
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxai.data.dataset import SPLITS
from jaxai.data.images import official as official
from jaxai.data.images.specs import Arrays, Spec, spec_of
from jaxai.data.images.tfds import one_line, prepared_folder, quiet, read_prepared
from jaxai.errors import DamagedFileError, ExistingFileError, MissingFileError, UserError

NAMES = ("mnist", "fashion_mnist", "cifar10")
PROBE_SECONDS = 2.5  # a slower connection counts as no network


def prepare(name: str, source: Path | None, data_dir: Path) -> Path:
    """Write ``data_dir/name/<version>/`` from the official files in ``source``, or the network if it is ``None``.

    Returns the folder. tensorflow-datasets' checksums are verified. The folder is built under a temporary name, read
    back, and only then renamed: nothing is overwritten, and a failure leaves nothing behind. An existing prepared
    folder is kept unchanged.

    Raises ``ValueError`` for an unknown name or a wrong checksum, ``FileNotFoundError`` for missing official files,
    ``FileExistsError`` if the folder exists in another format, ``OSError`` for a full disk.
    """
    spec = spec_of(name, among=NAMES)
    if (existing := prepared_folder(name, data_dir)) is not None:
        return existing
    if source is not None:
        source = _folder_with_files(name, source)
    import tensorflow_datasets as tfds

    final = data_dir / name / str(tfds.builder_cls(name).VERSION)
    if final.exists():
        raise ExistingFileError(
            f"{final}: already there, but not in ArrayRecord format (TensorFlow's cannot be read without TensorFlow);"
            " choose another --data-dir"
        )
    missing = [path for path in (data_dir / name, data_dir, *data_dir.parents) if not path.exists()]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=data_dir) as scratch:
            made = _build(spec, source, Path(scratch))
            for split in SPLITS:
                read_prepared(spec, split, made)
            final.parent.mkdir(exist_ok=True)
            try:
                made.rename(final)
            except OSError:
                if prepared_folder(name, data_dir) is None:  # else another process finished first
                    raise
    except Exception as error:
        raise _readable(error, name, data_dir) from error
    finally:
        if not final.exists():
            for path in missing:
                with contextlib.suppress(OSError):
                    path.rmdir()
    return final


def _build(spec: Spec, source: Path | None, scratch: Path) -> Path:
    """Let tensorflow-datasets prepare the folder under ``scratch``, and return its path."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    infos = _url_infos(spec.name)
    config = tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False, force_checksums_validation=True)
    with quiet(progress=source is None):
        builder = _builder_class(spec, infos)(data_dir=scratch, file_format="array_record")
        try:
            builder.download_and_prepare(download_dir=scratch / "downloads", download_config=config)
        except NonMatchingChecksumError as error:
            raise UserError(_wrong_checksum(error, infos, source)) from error
    return Path(builder.data_dir)


def _url_infos(name: str) -> Mapping[str, Any]:
    """tensorflow-datasets' table of a data set's files: URL -> ``UrlInfo`` (size, checksum, filename)."""
    import tensorflow_datasets as tfds

    return tfds.builder_cls(name).url_infos  # pyright: ignore[reportReturnType]


def _builder_class(spec: Spec, infos: Mapping[str, Any]) -> Any:
    """tensorflow-datasets' own builder, changed to read files with NumPy and write PNG with Pillow, not TensorFlow."""
    import tensorflow_datasets as tfds

    base: Any = tfds.builder_cls(spec.name)

    class Builder(base, skip_registration=True):  # pyright: ignore
        name = spec.name
        url_infos = infos

        def _split_generators(self, dl_manager):
            # Sequentially: parallel downloads would go on writing into the folder being removed when one of them fails.
            files = {info.filename: Path(dl_manager.download(url)) for url, info in infos.items()}
            if spec.name == "cifar10":
                self.info.features["label"].names = official.read_cifar_classes(files[official.CIFAR_ARCHIVE])
            return {split: self._generate_examples(split, _read(spec, split, files)) for split in SPLITS}

        def _generate_examples(self, split, arrays):
            for row, (image, label) in enumerate(zip(*arrays, strict=True)):
                example = {"image": _encode_png(image), "label": int(label)}
                yield row, example | ({"id": f"{split}_{row:05d}"} if spec.name == "cifar10" else {})

    return Builder


def _read(spec: Spec, split: str, files: Mapping[str, Path]) -> Arrays:
    if spec.name == "cifar10":
        return official.cifar_arrays(official.read_cifar_archive(files[official.CIFAR_ARCHIVE], split), spec)
    paths = tuple(files[f"{name}.gz"] for name in official.expected_files(spec.name, split))
    return official.read_official(spec, split, paths)


def _encode_png(image: np.ndarray) -> io.BytesIO:
    """Encode an image as PNG in a file object, which tensorflow-datasets stores as is; an array needs TensorFlow."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png")
    buffer.seek(0)
    return buffer


def _folder_with_files(name: str, source: Path) -> Path:
    """The subfolder ``name`` of ``source``, or ``source`` itself, whichever holds all files that need a checksum."""
    if not source.is_dir():
        raise MissingFileError(f"--from {source}: no such folder; give the folder that holds {name}'s official files")
    wanted = sorted(info.filename for info in _url_infos(name).values())
    for folder in (source / name, source):
        missing = [file for file in wanted if not (folder / file).is_file()]
        if not missing:
            return folder
    raise MissingFileError(
        f"--from {source}: {', '.join(missing)} missing; {name} is prepared from the official files as they are"
        f" downloaded ({', '.join(wanted)}), because their checksums are checked (unpacked files: pass the folder as"
        " --data-dir instead)"
    )


def _wrong_checksum(error: Exception, infos: Mapping[str, Any], source: Path | None) -> str:
    """The error message for the file whose checksum is wrong."""
    from tensorflow_datasets.core.download.checksums import compute_url_info

    for info in infos.values() if source else ():
        got = compute_url_info(source / info.filename)
        if got != info:
            return (
                f"{source / info.filename}: wrong checksum (SHA-256 {got.checksum[:12]}..., expected"
                f" {info.checksum[:12]}...); fetch the official file again"
            )
    url = next((url for url in infos if url in str(error)), "a downloaded file")
    return f"{url}: wrong checksum; the download was damaged, or something else answered in its place: run again"


def _readable(error: Exception, name: str, data_dir: Path) -> Exception:
    """Turn an error of the preparation into one with a one-line message; our own errors are returned unchanged."""
    if isinstance(error, ValueError | FileNotFoundError) and "\n" not in str(error):
        return error
    text = one_line(error)
    full = any(sign in text for sign in ("No space left", "File too large", "Disk quota"))
    fix = "free space on that disk or choose another --data-dir" if full else "run again"
    return DamagedFileError(f"{data_dir}: preparing {name} failed ({text}); nothing was left behind: {fix}")


def reachable(name: str) -> bool:
    """Whether the server of the data set's first file answers within ``PROBE_SECONDS``, through any configured proxy.

    Without a network tensorflow-datasets would retry for 204 s. The request runs in a thread because the name look-up
    has no time limit.
    """
    url = _first_url(name)
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):
            import requests

            if requests.head(url, timeout=PROBE_SECONDS, allow_redirects=True).ok:
                answered.set()
        done.set()

    done = threading.Event()
    threading.Thread(target=ask, daemon=True, name="jaxai-data-probe").start()
    done.wait(PROBE_SECONDS)
    return answered.is_set()


def _first_url(name: str) -> str:
    """The URL of the first file, from tensorflow-datasets' checksum table, without importing the package."""
    found = importlib.util.find_spec("tensorflow_datasets")
    if found is None or found.origin is None:
        raise MissingFileError("tensorflow-datasets is not installed; install jaxai again")
    table = Path(found.origin).parent / "url_checksums" / f"{name}.txt"
    return table.read_text().split(maxsplit=1)[0]
