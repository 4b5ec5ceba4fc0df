"""Find and read tensorflow-datasets' standard folders (ArrayRecord format) without TensorFlow.

tensorflow-datasets is imported inside the functions that need it: the import takes 0.4 s, and runs on embedded data or
official files do without it.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxai.data.images.specs import Arrays, Spec, check_arrays
from jaxai.errors import DamagedFileError, UserError


def default_dir() -> Path:
    """tensorflow-datasets' data folder: ``TFDS_DATA_DIR``, else ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared_folder(name: str, data_dir: Path) -> Path | None:
    """The newest ``data_dir/name/<version>/`` in ArrayRecord format, or ``None``."""
    found = [
        info.parent
        for info in (data_dir / name).glob("*.*.*/dataset_info.json")
        if any(info.parent.glob("*.array_record-*"))
    ]
    return max(found, key=lambda path: [int(n) for n in path.name.split(".") if n.isdigit()], default=None)


def read_prepared(spec: Spec, split: str, folder: Path) -> Arrays:
    """All examples of a prepared folder, decoded: uint8 [n, height, width, C] and int32 [n], in the folder's order.

    Raises ``OSError``, naming the folder, if it is damaged.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.decode import DeserializeMethod
    from tensorflow_datasets.proto import tf_example_pb2

    parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]

    raw = DeserializeMethod.RAW_BYTES  # tfds decodes 2,800 images/s, Pillow alone ten times as many
    try:
        with quiet():
            builder: Any = tfds.builder_from_directory(folder)
            source = builder.as_data_source(split, deserialize_method=raw)
            records = source.__getitems__(list(range(len(source))))
        images = np.empty((len(records), *spec.shape), np.uint8)
        labels = np.empty(len(records), np.int32)
        for row, record in enumerate(records):
            feature = parse(record).features.feature
            images[row] = _decode_png(feature["image"].bytes_list.value[0], spec)
            labels[row] = feature["label"].int64_list.value[0]
        return check_arrays(images, labels, spec, str(folder))
    except Exception as error:  # JSON, protobuf, ArrayRecord and Pillow each raise their own exceptions
        raise DamagedFileError(
            f"{folder}: the prepared folder of {spec.name} cannot be read ({one_line(error)}); move it away and"
            f" prepare it again: python -m jaxai.data prepare {spec.name} --from DIR"
        ) from error


def _decode_png(content: bytes, spec: Spec) -> np.ndarray:
    """Decode one image, uint8 [height, width, C], after checking its size."""
    from PIL import Image

    height, width, channels = spec.shape
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        mode = "L" if channels == 1 else "RGB"
        if image.size != (width, height) or image.mode != mode:
            found = f"{image.height}x{image.width} {image.mode}"
            raise UserError(f"an image of {found}, {spec.name} has {height}x{width} {mode}")
        return np.asarray(image).reshape(spec.shape)


def one_line(error: BaseException) -> str:
    """The message of any exception as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def quiet(*, progress: bool = False) -> Iterator[None]:
    """Keep tensorflow-datasets' notices and absl's warnings off the terminal; ``progress`` keeps the progress bars."""
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging

    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    if not progress:
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()
