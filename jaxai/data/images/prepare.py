"""Preparing tensorflow-datasets' standard folders without TensorFlow, from official files or from the network."""

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
PROBE_SECONDS = 2.5  # a connection that takes longer counts as none


def prepare(name: str, source: Path | None, data_dir: Path) -> Path:
    """Write ``data_dir/name/<version>/`` from the official files in ``source`` (``None``: from the network); its path.

    tensorflow-datasets' checksums are checked. The work is done in a hidden folder beside and moved to its place when
    it has been read back: nothing is overwritten, a failure leaves nothing behind, and a prepared folder that is
    already there is left as it is.

    Raises ``ValueError`` for an unknown name or a wrong checksum, ``FileNotFoundError`` for missing official files,
    ``FileExistsError`` where another format is in the way, ``OSError`` for a full disk.
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
                if prepared_folder(name, data_dir) is None:  # else another process was quicker
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
    """Let tensorflow-datasets prepare the folder under ``scratch``; its path."""
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
    """tensorflow-datasets' own builder, reading files and writing PNG with numpy and Pillow instead of TensorFlow."""
    import tensorflow_datasets as tfds

    base: Any = tfds.builder_cls(spec.name)

    class Builder(base, skip_registration=True):  # pyright: ignore
        name = spec.name
        url_infos = infos

        def _split_generators(self, dl_manager):
            # One after the other: a failing download would leave the others writing into the folder being removed.
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
    """tensorflow-datasets stores what a file object holds as it is; for arrays it would call TensorFlow."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png")
    buffer.seek(0)
    return buffer


def _folder_with_files(name: str, source: Path) -> Path:
    """``source`` or its subfolder ``name``, whichever holds the files whose checksums tensorflow-datasets knows."""
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
    """Name the file that tensorflow-datasets refused."""
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
    """Our own messages as they are; anything else that ended a preparation as one line."""
    if isinstance(error, ValueError | FileNotFoundError) and "\n" not in str(error):
        return error
    text = one_line(error)
    full = any(sign in text for sign in ("No space left", "File too large", "Disk quota"))
    fix = "free space on that disk or choose another --data-dir" if full else "run again"
    return DamagedFileError(f"{data_dir}: preparing {name} failed ({text}); nothing was left behind: {fix}")


def reachable(name: str) -> bool:
    """Whether the server of the data set's first file answers within ``PROBE_SECONDS``, through proxies as configured.

    Without a network tensorflow-datasets would retry for 204 s. A thread asks, because nothing bounds a name look-up.
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
    """Read from the package's checksum table, without importing it."""
    found = importlib.util.find_spec("tensorflow_datasets")
    if found is None or found.origin is None:
        raise MissingFileError("tensorflow-datasets is not installed; install jaxai again")
    table = Path(found.origin).parent / "url_checksums" / f"{name}.txt"
    return table.read_text().split(maxsplit=1)[0]
