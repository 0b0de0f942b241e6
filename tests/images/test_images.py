"""Images of every kind against pixels worked out by hand or by numpy, and one clear line for those that are none."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from evcap.images import opening as images
from evcap.images.opening import ImageError, open_image, to_rgb, to_tensor

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def pixels(path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth colour image (height,width,3) uint8 whose four corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 2 % 256], axis=-1).astype(np.uint8)


def png_header(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG with the given size in its header, whatever its data hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


# Formats and modes


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
    Image.fromarray(photo()).save(tmp_path / f"p.{suffix}")
    assert np.array_equal(pixels(tmp_path / f"p.{suffix}"), photo())


def test_webp_lossless_keeps_every_pixel(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "p.webp", lossless=True)
    assert np.array_equal(pixels(tmp_path / "p.webp"), photo())


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow is built without AVIF")
def test_avif(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "p.avif", quality=95)
    assert np.abs(pixels(tmp_path / "p.avif").astype(int) - photo()).mean() < 6


def test_the_suffix_does_not_matter(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "p.png")
    (tmp_path / "p.png").rename(tmp_path / "p.dat")
    assert np.array_equal(pixels(tmp_path / "p.dat"), photo())


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (10, 200, 30)).save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png").tolist() == [[[10, 200, 30]]]
    tensor = to_tensor([open_image(tmp_path / "p.png")], 8, [0, 0, 0], [1, 1, 1])
    assert torch.allclose(tensor, (torch.tensor([10.0, 200.0, 30.0]) / 255).view(1, 3, 1, 1).expand(1, 3, 8, 8))


def test_grey_and_one_bit(tmp_path):
    grey = photo()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(pixels(tmp_path / "grey.png"), np.stack([grey] * 3, -1))
    Image.fromarray(grey > 127).convert("1").save(tmp_path / "bits.png")
    assert np.array_equal(pixels(tmp_path / "bits.png")[..., 1], np.where(grey > 127, 255, 0))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 12850], [30000, 51400, 65535]], np.uint16)
    expected = [[0, 1, 50], [117, 200, 255]]
    Image.fromarray(values).save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png")[..., 0].tolist() == expected
    (tmp_path / "p.pgm").write_bytes(b"P5\n3 2\n65535\n" + values.astype(">u2").tobytes())
    assert pixels(tmp_path / "p.pgm")[..., 2].tolist() == expected


def test_float_pictures_are_stretched_and_not_a_number_is_survived():
    def shown(values) -> list:
        return np.asarray(to_rgb(Image.fromarray(np.array(values, np.float32))))[..., 0].tolist()

    assert shown([[-1, 0], [0.5, 1]]) == [[0, 128], [191, 255]]
    assert shown([[np.nan, np.inf], [0, 1]]) == [[0, 0], [0, 255]]
    assert shown([[7, 7], [7, 7]]) == [[0, 0], [0, 0]]


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_transparency_is_laid_on_white(tmp_path, suffix):
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / f"p.{suffix}", lossless=True)
    expected = np.array([[200, 0, 0], [255, 255, 255], [244, 204, 204]])
    assert np.abs(pixels(tmp_path / f"p.{suffix}")[0].astype(int) - expected).max() <= 1


def test_grey_with_alpha_and_palette_with_transparency(tmp_path):
    Image.fromarray(np.array([[[80, 255], [80, 0]]], np.uint8)).save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png").tolist() == [[[80] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    assert pixels(tmp_path / "p.png").tolist() == [[[0, 0, 255], [255, 255, 255]]]
    Image.fromarray(photo()).save(tmp_path / "key.png", transparency=(0, 0, 0))  # one colour counts as transparent
    assert pixels(tmp_path / "key.png")[0, 0].tolist() == [255, 255, 255]


def test_cmyk(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "p.jpg", quality=100)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "p.tif")
    for name in ("p.jpg", "p.tif"):
        assert np.abs(pixels(tmp_path / name).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    "orientation, stored",
    [  # how the camera stored the upright image, from the EXIF definition of each orientation
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_exif_orientation(tmp_path, orientation, stored, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(photo())))
    image.save(tmp_path / f"p.{suffix}", exif=exif, quality=100, lossless=True, subsampling=0)
    assert np.abs(pixels(tmp_path / f"p.{suffix}").astype(int) - photo()).max() <= 6
    again = to_rgb(open_image(tmp_path / f"p.{suffix}"))
    assert again.size == (60, 40), "turned once, not twice"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "p.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xee" * 40)
    assert pixels(tmp_path / "p.jpg").shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"p.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(pixels(tmp_path / f"p.{suffix}"), np.full((8, 8, 3), [255, 0, 0]))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_pictures_are_shrunk_on_request_only(tmp_path, suffix):
    Image.fromarray(photo(800, 1200)).save(tmp_path / f"p.{suffix}", quality=100, subsampling=0)
    assert open_image(tmp_path / f"p.{suffix}").size == (1200, 800)
    small = open_image(tmp_path / f"p.{suffix}", at_least=200)
    assert small.size == (300, 200)
    means = photo(800, 1200).reshape(200, 4, 300, 4, 3).mean((1, 3))  # a block of 4 x 4 becomes one pixel
    smooth = np.asarray(small)[..., :2].astype(float) - means[..., :2]
    assert np.abs(smooth).max() <= 4


# What cannot be opened


def refusal(path) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(path)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{path}: ")
    return line


def test_not_a_picture(tmp_path):
    (tmp_path / "p.jpg").write_text("I only pretend")
    assert "not an image" in refusal(tmp_path / "p.jpg")
    (tmp_path / "p.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert "not an image" in refusal(tmp_path / "p.eps")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_a_truncated_picture_is_refused_at_every_length(tmp_path, suffix):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    for part in np.linspace(1, len(data) * 0.9, 25).astype(int):
        (tmp_path / f"p.{suffix}").write_bytes(data[:part])
        refusal(tmp_path / f"p.{suffix}")
    (tmp_path / f"p.{suffix}").write_bytes(data[: len(data) // 2])
    assert any(word in refusal(tmp_path / f"p.{suffix}") for word in ("damaged or cut short", "header is damaged"))


def test_empty_missing_folder_and_pipe(tmp_path):
    (tmp_path / "p.png").touch()
    assert "0 bytes" in refusal(tmp_path / "p.png")
    assert "no such file" in refusal(tmp_path / "missing.png")
    assert "a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening one would wait for ever
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_no_permission(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    Image.fromarray(photo()).save(path)
    path.chmod(0)
    if os.geteuid() == 0:  # root reads everything, so play the refusal

        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(images.Image, "open", refuse)
    assert "permission" in refusal(path)


def test_a_bomb_is_refused_from_its_header(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png_header(30_000, 30_000))
    monkeypatch.setattr(Image.core, "new", lambda *a: pytest.fail("pixels were allocated"))
    monkeypatch.setattr(Image.core, "fill", lambda *a: pytest.fail("pixels were allocated"))
    assert "178 megapixels" in refusal(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_hundred_megapixels_pass_the_limit(tmp_path):
    """The header passes; the data are missing, so that this test need not hold 400 MB."""
    (tmp_path / "large.png").write_bytes(png_header(10_000, 10_000))
    assert "damaged" in refusal(tmp_path / "large.png")


# To a tensor


def test_tensor_is_the_normalised_squashed_picture():
    image = Image.fromarray(photo(37, 91))
    tensor = to_tensor([image, image], 24, MEAN, STD)
    assert tensor.shape == (2, 3, 24, 24) and tensor.dtype == torch.float32
    squashed = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC), np.float64) / 255
    expected = ((squashed - MEAN) / STD).transpose(2, 0, 1)
    assert np.abs(tensor[1].numpy() - expected).max() < 1e-6
    assert to_tensor([], 24, MEAN, STD).shape == (0, 3, 24, 24)


def test_a_picture_of_the_right_size_is_not_resampled():
    noise = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    tensor = to_tensor([Image.fromarray(noise)], 32, [0, 0, 0], [1, 1, 1])
    assert np.array_equal((tensor[0] * 255).round().numpy().transpose(1, 2, 0), noise)


def test_any_mode_is_taken():
    grey = to_tensor([Image.fromarray(photo()[..., 0])], 16, MEAN, STD)
    assert grey.shape == (1, 3, 16, 16)
