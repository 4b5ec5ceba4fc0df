"""The contract of data sets: their identity, and the names of their splits."""

import dataclasses

import pytest

from jaxai.data import ImageDataset
from jaxai.data.dataset import SPLITS, Dataset, check_split
from jaxai.data.embedded import mnist
from jaxai.data.images.sources import load
from jaxai.data.text.pairs import load_pairs
from jaxai.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tiny(Dataset):
    name: str = "tiny"
    source: str = "made up"
    embedded: bool = False
    fingerprint: str = "abc"


def test_identity_is_what_a_continued_run_must_share():
    assert Tiny().identity() == {"name": "tiny", "fingerprint": "abc", "embedded": False}
    assert Tiny(source="elsewhere").identity() == Tiny().identity()
    assert Tiny(fingerprint="abd").identity() != Tiny().identity()


def test_data_sets_follow_the_contract():
    images, pairs = load("mnist", "test", embedded_only=True), load_pairs(None, "test", "en", "de")
    assert isinstance(images, ImageDataset)
    for dataset in (images, pairs):
        assert dataset.identity() == {"name": dataset.name, "fingerprint": dataset.fingerprint, "embedded": True}
        assert len(bytes.fromhex(dataset.fingerprint)) == 8
        assert "\n" not in dataset.source
        assert dataset.source.startswith(dataset.name)


def test_fingerprints_tell_splits_apart():
    assert len({load("mnist", split, embedded_only=True).fingerprint for split in SPLITS}) == len(SPLITS)
    assert len(mnist("train")[0]) != len(mnist("test")[0])


@pytest.mark.parametrize("split", SPLITS)
def test_known_splits_pass(split):
    check_split(split)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", r"split 'trian' is unknown \(did you mean 'train'\?\); choose one of: train, test"),
        ("TEST", r"'TEST' is unknown \(did you mean 'test'\?\)"),
        ("validation", "'validation' is unknown; choose one of: train, test$"),
        ("", "'' is unknown; choose"),
    ],
)
def test_unknown_splits_name_the_nearest(split, message):
    with pytest.raises(UserError, match=message):
        check_split(split)
