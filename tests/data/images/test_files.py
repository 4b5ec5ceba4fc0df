"""Image files of the user's."""

import numpy as np
from PIL import Image

from jaxai.data.images.files import read_image


def test_a_photograph_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned
    Image.fromarray(np.zeros((4, 10, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", 3)[0].shape == (1, 10, 4, 3)
