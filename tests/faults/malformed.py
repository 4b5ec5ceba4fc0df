"""Malformed input: command lines, config files, data files, weights. Each is refused in one line with exit code 2."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults.runs import REPOSITORY

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.py"))
UNTRAINED = {"linear_regression"}  # has no training options


@dataclasses.dataclass(frozen=True)
class Case:
    """A command that must be refused with a message containing ``words``; ``prepare`` first writes its files."""

    experiment: str
    arguments: tuple[str, ...]
    words: str
    prepare: Callable[[Path], None] = lambda folder: None

    @property
    def name(self) -> str:
        return f"{self.experiment} {' '.join(self.arguments)}"


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    """Return a function that writes this file into a folder."""

    def prepare(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


COMMON = {
    ("--preset", "debgu"): "--preset debgu is unknown: did you mean debug",
    ("--preset", ""): "--preset is unknown: there are",
    ("--unknown-option", "1"): "--unknown-option",
    ("--steps", "0"): "--steps must be at least 1, got 0",
    ("--steps", "many"): "--steps",
    ("--seed", "-1"): "--seed must be at least 0, got -1",
    ("--devices", "-2"): "--devices must be at least 0, got -2",
    ("--resume", "sometimes"): "--resume",
    ("--platform", "quantum"): "--platform",
    ("--preset", "debug", "--workdir", "FOLDER/file"): "FOLDER/file can't be used",
    ("--preset", "debug", "--workdir", "FOLDER/full"): "FOLDER/full holds files but no run",
}
TRAINED = {
    ("--checkpoint-every", "-1"): "--checkpoint-every must be at least 0, got -1",
    ("--checkpoint-seconds", "-1"): "--checkpoint-seconds must be at least 0, got -1",
    ("--checkpoint-seconds", "nan"): "--checkpoint-seconds must be at least 0, got nan",
    ("--keep", "0"): "--keep must be at least 1, got 0",
    ("--on-nonfinite", "pray"): "--on-nonfinite",
    ("--mesh", "data=0"): "--mesh must look like data=4 or data=4,model=2, got data=0",
    ("--mesh", "model=2"): "--mesh must look like",
    ("--mesh", "data=2", "--devices", "3"): "--mesh data=2 does not match --devices 3",
    ("--coordinator", "nowhere"): "--coordinator must be HOST:PORT or auto, got nowhere",
    ("--coordinator", "here:99999", "--num-processes", "2", "--process-id", "0"): "--coordinator must be HOST:PORT",
    ("--coordinator", "here:1234", "--num-processes", "2"): "needs --num-processes N and --process-id",
    ("--coordinator", "here:1234", "--num-processes", "2", "--process-id", "2"): "got 2 and 2",
    ("--num-processes", "2"): "need --coordinator HOST:PORT",
    ("--watchdog", "nan"): "--watchdog must be at least 0, got nan",
}
BROKEN = {
    "empty": b"",
    "cut off": b'{"experiment": "gan_mni',
    "binary": bytes(range(256)),
    "a list": b"[1, 2]",
    "a number": b"1e400",
    "without data": b'{"experiment": "gan_mnist"}',
    "data is text": b'{"experiment": "gan_mnist", "data": "mnist"}',
    "deep": b"[" * 100_000,
}
WEIGHTS = {
    "empty": b"",
    "text": b"these are no weights",
    "pickle": b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94.",
    "huge header": (2**62).to_bytes(8, "little") + b"{}",
    "header of rubbish": (40).to_bytes(8, "little") + b"x" * 40,
    "offsets beyond the end": (66).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[9999999],"data_offsets":[0,39999996]}}'[:66],
}


def idx(dims: tuple[int, ...], length: int, kind: int = 8) -> bytes:
    """An idx file with sizes ``dims`` in its header and ``length`` bytes of data."""
    return (
        bytes([0, 0, kind, len(dims)]) + b"".join(np.array(dims, ">u4").tobytes() for dims in [dims]) + b"\1" * length
    )


IDX = {
    "empty": b"",
    "text": b"<html>404</html>",
    "cut off": idx((64, 28, 28), 1000),
    "too long": idx((64, 28, 28), 64 * 28 * 28 + 1),
    "of other numbers": idx((64, 28, 28), 64 * 28 * 28, kind=0x0D),
    "of labels": idx((64,), 64),
    "of larger images": idx((64, 32, 32), 64 * 32 * 32),
    "of no images": idx((0, 28, 28), 0),
    "of 4 billion images": idx((2**32 - 1, 28, 28), 784),
    "gzip cut off": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb",
}


def idx_case(experiment: str, name: str, content: bytes) -> Case:
    def prepare(folder: Path) -> None:
        for file, good in (
            ("train-images-idx3-ubyte", content),
            ("train-labels-idx1-ubyte", idx((64,), 64)),
            ("t10k-images-idx3-ubyte", idx((32, 28, 28), 32 * 28 * 28)),
            ("t10k-labels-idx1-ubyte", idx((32,), 32)),
        ):
            write(f"data {name}/{file}", good)(folder)

    arguments = ("--preset", "debug", "--data-dir", f"FOLDER/data {name}", "--workdir", "FOLDER/new")
    return Case(experiment, arguments, "train-images-idx3-ubyte", prepare)


def finished(content: bytes) -> Callable[[Path], None]:
    """Return a function that writes a finished run's folder with this content as its weights."""

    def prepare(folder: Path) -> None:
        identity = {"experiment": "gan_mnist", "network": "residual", "widths": [16, 8], "hidden": 32, "blocks": 1}
        write("run/config.json", json.dumps(identity | {"latent_size": 64, "data": {}}))(folder)
        write("run/model.safetensors", content)(folder)

    return prepare


def cases() -> list[Case]:
    """All cases of all experiments."""

    def occupied(folder: Path) -> None:
        write("file", "text")(folder)
        write("full/mine.txt", "text")(folder)

    found = []
    for experiment in EXPERIMENTS:
        options = COMMON if experiment in UNTRAINED else COMMON | TRAINED
        found += [Case(experiment, arguments, words, occupied) for arguments, words in options.items()]
    for content in BROKEN.values():
        prepare, arguments = write("run/config.json", content), ("--preset", "debug", "--workdir", "FOLDER/run")
        found += [
            Case(each, arguments, "FOLDER/run/config.json is damaged", prepare) for each in ("gan_toy2d", "gan_mnist")
        ]
    found += [
        Case("gan_mnist", ("sample", "--workdir", "FOLDER/run"), "FOLDER/run", finished(x)) for x in WEIGHTS.values()
    ]
    found += [idx_case(each, *item) for item in IDX.items() for each in ("gan_mnist", "digit_classifier")]
    found.append(Case("gan_mnist", ("sample", "--workdir", "FOLDER/none"), "FOLDER/none holds no finished run"))
    found.append(Case("gan_mnist", ("--data-dir", "FOLDER/none"), "FOLDER/none"))
    return found
