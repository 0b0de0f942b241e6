"""Boxes of turned images against Pillow, which turns the pixels."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from evcap.images.orientation import ORIENTATION, stored_orientation, stored_size, to_stored, to_upright


@given(st.integers(1, 8), st.integers(2, 9), st.integers(2, 9), st.data())
def test_a_box_turns_with_its_pixels(orientation, width, height, data):
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)))
    pixels = np.zeros((height, width), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = orientation
    upright = ImageOps.exif_transpose(image)
    assert stored_size(upright.size, orientation) == (width, height)
    turned = to_upright(box, orientation, upright.size)
    rows, columns = np.nonzero(np.asarray(upright))
    assert turned == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert to_stored(turned, orientation, upright.size) == box


@pytest.mark.parametrize("told", [3, 9, 0])
def test_what_an_image_says_of_itself(tmp_path, told):
    exif = Image.Exif()
    exif[ORIENTATION] = told
    path = tmp_path / "a.jpg"
    Image.new("RGB", (4, 3)).save(path, exif=exif)
    expected = told if told == 3 else 1
    content = path.read_bytes()
    with Image.open(path) as image:
        assert [stored_orientation(each) for each in (path, str(path), content, image)] == [expected] * 4
    assert stored_orientation(np.zeros((3, 4, 3), np.uint8)) == 1
    assert stored_orientation(io.BytesIO(b"no image")) == 1
    assert stored_orientation(tmp_path / "none.jpg") == 1
