"""What the captioner takes as images: each kind gives the pixels of the file."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evcap.errors import EvcapError
from evcap.images.inputs import as_list, open_picture
from evcap.images.opening import ImageError


@pytest.fixture
def photo(examples) -> Path:
    return examples[0]


def test_every_kind_gives_the_pixels_of_the_file(captioner, photo):
    content = photo.read_bytes()
    with Image.open(photo) as image:
        image.load()
    kinds = [str(photo), image, np.asarray(image), content, bytearray(content), memoryview(content), io.BytesIO(content)]
    expected = captioner.pixels([photo])
    for kind in kinds[:1] + kinds[3:]:
        assert torch.equal(captioner.pixels([kind]), expected)
    with photo.open("rb") as file:
        assert torch.equal(captioner.pixels([file]), expected)
    from_pixels = captioner.pixels([image])  # a file that is far larger than needed is shrunk while it is opened
    assert torch.equal(captioner.pixels([kinds[2]]), from_pixels)
    assert torch.allclose(from_pixels, expected, atol=0.5)


def test_grey_arrays_and_views(captioner):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    assert np.array_equal(np.asarray(open_picture(pixels[::-1, ::2])), pixels[::-1, ::2])
    grey = pixels[..., 0]
    assert np.array_equal(np.asarray(open_picture(grey)), np.repeat(grey[..., None], 3, axis=2))


def test_one_or_many_also_from_a_generator(captioner, photo):
    content = photo.read_bytes()
    alone = captioner.caption(photo, max_length=6)
    assert captioner.caption(content, batch_size=1, max_length=6) == alone
    several = captioner.caption((picture for picture in (photo, content, io.BytesIO(content))), batch_size=2, max_length=6)
    assert [caption.caption for caption in several] == [alone.caption] * 3
    assert captioner.names(content) == captioner.names([photo]) == [alone.names]
    assert np.array_equal(captioner.keys(content), captioner.keys([photo]))
    assert captioner.caption([]) == [] and captioner.keys(iter([])).shape[0] == 0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (np.zeros((4, 4, 3)), r"ndarray \(4,4,3\) of float64"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4,4,4\) of uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), "several as a list"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0,4,3\)"),
        (np.zeros(4, np.uint8), r"\(4\)"),
        (torch.zeros(3, 4, 4), r"Tensor \(3,4,4\) of float32"),
        (7, "a int"),
        (None, "a NoneType"),
        ({"image": 1}, "a dict"),
        ([7], "a int"),
        (io.StringIO("text"), "binary mode"),
    ],
)
def test_what_is_no_picture_is_one_line(wrong, told):
    with pytest.raises(EvcapError, match=told) as caught:
        for picture in as_list(wrong)[0]:
            open_picture(picture)
    assert "\n" not in str(caught.value)


def test_content_that_is_no_picture_names_no_temporary_file(photo):
    for content in (b"", b"no image", photo.read_bytes()[:2000]):
        for given, name in ((content, "the bytes of an image: "), (io.BytesIO(content), "the content of a file object: ")):
            with pytest.raises(ImageError) as caught:
                open_picture(given)
            assert str(caught.value).startswith(name) and "/evcap-" not in str(caught.value)
