"""Commands of a finished GAN run: drawing images, and finding the latents of given ones."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxai.config import Common
from jaxai.errors import MissingFileError, UserError
from jaxai.gan.commands import Invert, Sample, TrainedGenerator, generator_commands
from jaxai.plots import to_pixels
from jaxai.run.folder import open_run
from jaxai.run.weights import save_weights


class Generator(nn.Module):
    """The latents as pixels, four by four; a class moves all of them."""

    classes: int = 0

    @nn.compact
    def __call__(self, latents, labels=None):
        images = self.param("scale", nn.initializers.ones, (1, 1, 1, 1)) * latents.reshape(-1, 4, 4, 1)
        return images if labels is None else images / 100 + (labels - 1.0)[:, None, None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    classes: int = 0


TEST_IMAGES = np.random.default_rng(0).integers(60, 196, (20, 4, 4, 1), np.uint8)


def generator_of(config: Config) -> TrainedGenerator:
    labels = np.arange(20) % max(config.classes, 1)
    return TrainedGenerator(Generator(config.classes), 16, config.classes, lambda data_dir: (TEST_IMAGES, labels))


COMMANDS = generator_commands("tiny", Config, generator_of)
sample, invert = COMMANDS["sample"][0], COMMANDS["invert"][0]


def finished(folder: Path, classes: int = 0, scale: float = 1.0) -> Path:
    """The folder of a finished run."""
    run = open_run("tiny", Config(workdir=folder, classes=classes), {"name": "made up"})
    save_weights(folder / "model.safetensors", {"scale": np.full((1, 1, 1, 1), scale, np.float32)}, run.identity)
    return folder


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def numbered(folder: Path) -> list[np.ndarray]:
    return [read(path) for path in sorted(folder.glob("[0-9]*.png"))]


def test_commands_have_options():
    assert {name: form for name, (_, form) in COMMANDS.items()} == {"sample": Sample, "invert": Invert}


def test_samples_are_single_files_and_a_sheet(tmp_path, capsys):
    folder = finished(tmp_path / "run")
    sample(Sample(workdir=folder, count=12))
    out = folder / "images_0"
    assert sorted(path.name for path in out.iterdir()) == [*(f"{i:05d}.png" for i in range(12)), "sheet.png"]
    images = numbered(out)
    assert {image.shape for image in images} == {(4, 4)}
    sheet = read(out / "sheet.png")
    assert sheet.shape == (2 * (2 * 5 - 1), 2 * (10 * 5 - 1))
    np.testing.assert_array_equal(sheet[10:18:2, 10:18:2], images[11])
    assert capsys.readouterr().out == f"12 images and sheet.png in {out}\n"


def test_the_seed_decides_what_is_drawn(tmp_path):
    folder = finished(tmp_path / "run")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sample(Sample(workdir=folder, count=3, seed=seed, out=tmp_path / name))
    first, again, other = (np.stack(numbered(tmp_path / name)) for name in "abc")
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_truncation_bounds_the_latents(tmp_path):
    folder = finished(tmp_path / "run")
    sample(Sample(workdir=folder, count=50, truncation=0.5, out=tmp_path / "out"))
    pixels = np.stack(numbered(tmp_path / "out"))
    low, high = to_pixels(np.array([-0.5, 0.5], np.float32).reshape(2, 1, 1, 1)).ravel()
    assert low <= pixels.min() < low + 3
    assert high - 3 < pixels.max() <= high


@pytest.mark.parametrize(("label", "levels"), [(None, [0, 128, 255, 0, 128, 255]), (1, [128] * 6)])
def test_classes_come_in_turn_or_as_asked(tmp_path, label, levels):
    folder = finished(tmp_path / "run", classes=3)
    sample(Sample(workdir=folder, count=6, label=label, truncation=0.5, out=tmp_path / "out"))
    means = [image.mean() for image in numbered(tmp_path / "out")]
    np.testing.assert_allclose(means, levels, atol=3)


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [(3, 3, "--label 3: this run knows 0 to 2"), (3, -1, "--label -1: this run"), (0, 0, "this run knows no classes")],
)
def test_unknown_labels_are_refused(tmp_path, classes, label, message):
    folder = finished(tmp_path / "run", classes=classes)
    with pytest.raises(UserError, match=message):
        sample(Sample(workdir=folder, label=label))
    assert not (folder / "images_0").exists()


def test_nothing_is_overwritten(tmp_path):
    folder = finished(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    sample(Sample(workdir=folder, count=1, out=tmp_path / "empty"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(UserError, match="is there already: give another --out or --seed"):
            sample(Sample(workdir=folder, count=1, out=out))


def test_inversion_finds_latents_that_draw_the_images(tmp_path, capsys):
    """Every image can be drawn exactly: its latents are its pixels, over the scale."""
    folder = finished(tmp_path / "run", scale=0.5)
    invert(Invert(workdir=folder, count=5, steps=300))
    picture = read(folder / "inverted.png")[::2, ::2]
    assert picture.shape == (2 * 5 - 1, 5 * 5 - 1)
    above, below = picture[:4].astype(int), picture[5:].astype(int)
    expected = np.concatenate(TEST_IMAGES[:5, ..., 0], 1)
    shown = np.delete(above, [4, 9, 14, 19], 1)
    np.testing.assert_array_equal(shown, expected)
    assert np.abs(below - above).max() <= 8
    said = capsys.readouterr().out
    assert said.startswith("mean squared difference 0.00")
    assert str(folder / "inverted.png") in said


def test_inversion_of_a_conditional_generator_knows_the_labels(tmp_path):
    folder = finished(tmp_path / "run", classes=3)
    invert(Invert(workdir=folder, count=3, steps=5))
    below = np.stack(np.split(np.delete(read(folder / "inverted.png")[::2, ::2][5:], [4, 9], 1), 3, 1))
    assert (np.diff(below.mean((1, 2))) > 100).all()  # the levels of classes 0, 1, 2


def test_a_folder_without_a_finished_run_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="holds no finished run"):
        sample(Sample(workdir=tmp_path))
    folder = finished(tmp_path / "run")
    save_weights(folder / "model.safetensors", {"scale": np.ones((2, 1, 1, 1))}, {})
    with pytest.raises(ValueError, match="holds another model: scale is"):
        invert(Invert(workdir=folder))


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (Sample, {"count": 0}, "--count must be at least 1"),
        (Sample, {"truncation": -1.0}, "--truncation must be at least 0"),
        (Sample, {"seed": -1}, "--seed must be at least 0"),
        (Invert, {"count": 0}, "--count must be at least 1"),
        (Invert, {"steps": 0}, "--steps must be at least 1"),
        (Invert, {"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_bad_options_are_named(form, options, message):
    with pytest.raises(UserError, match=message):
        form(**options)


def test_drawing_in_batches_gives_every_image():
    generator, latents = generator_of(Config()), jax.random.normal(jax.random.key(0), (130, 16))
    images = generator.draw({"scale": jnp.ones((1, 1, 1, 1))}, latents, np.zeros(130))
    np.testing.assert_array_equal(images, to_pixels(np.asarray(latents).reshape(-1, 4, 4, 1)))
