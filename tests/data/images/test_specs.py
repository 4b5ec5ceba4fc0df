"""Fixed properties of the image data sets, and arrays that contradict them."""

import numpy as np
import pytest

from jaxai.data.images.specs import SPECS, check_arrays, spec_of
from jaxai.errors import UserError

SPEC = SPECS["digits8x8"]
IMAGES, LABELS = np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 9, 4], np.uint8)


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_is_found_by_its_name(name):
    spec = spec_of(name)
    assert spec.name == name
    assert set(spec.counts) == {"train", "test"}
    assert spec.counts["test"] < spec.counts["train"]
    assert spec.shape[2] in (1, 3)


@pytest.mark.parametrize(
    ("name", "nearest"), [("mnits", "mnist"), ("Fashion-MNIST", "fashion_mnist"), ("cifar", "cifar10")]
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(UserError, match=rf"name '{name}' is unknown here \(did you mean '{nearest}'"):
        spec_of(name)


def test_only_the_offered_names_are_known():
    with pytest.raises(UserError, match=r"name 'mnist' is unknown here; choose one of: cifar10$"):
        spec_of("mnist", among=("cifar10",))
    with pytest.raises(UserError, match="name 'zzz' is unknown here; choose one of: mnist, fashion_mnist"):
        spec_of("zzz")


def test_right_arrays_pass_with_labels_of_32_bits():
    images, labels = check_arrays(IMAGES, LABELS, SPEC, "file")
    np.testing.assert_array_equal(images, IMAGES, strict=True)
    np.testing.assert_array_equal(labels, LABELS.astype(np.int32), strict=True)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            IMAGES.astype(np.float32),
            LABELS,
            r"file: images are float32 \[8, 8, 1\], but digits8x8 has uint8 \[8, 8, 1\]",
        ),
        (IMAGES[:, :7], LABELS, r"file: images are uint8 \[7, 8, 1\]"),
        (IMAGES, LABELS[:2], "file: 3 images and 2 labels; they must be equally many"),
        (IMAGES[:0], LABELS[:0], "file: 0 images and 0 labels"),
        (IMAGES, np.array([0, 10, 11]), "file: label 10 of example 1 is outside 0..9; the file is damaged"),
        (IMAGES, np.array([0, 1, -1]), "file: label -1 of example 2 is outside"),
    ],
)
def test_wrong_arrays_are_named(images, labels, message):
    with pytest.raises(UserError, match=message) as caught:
        check_arrays(images, labels, SPEC, "file")
    assert "\n" not in str(caught.value)
