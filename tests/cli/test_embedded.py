"""Captions inside image files: read back by Pillow, pixels and everything else as they were."""

import os
from pathlib import Path

import numpy as np
import pytest
from cli_tools import COLOURS, run, said
from PIL import Image, ImageSequence, TiffImagePlugin

from evcap.cli.embedded import DESCRIPTION, embed
from evcap.cli.sidecars import Existing
from evcap.errors import EvcapError

MAKE, ORIENTATION, EXIF_FOLDER, GPS_FOLDER, MAKER_NOTE = 0x010F, 0x0112, 0x8769, 0x8825, 0x927C


def content(path) -> tuple:
    """Frames and EXIF tags of an image, those of folders in it too, without the description."""
    with Image.open(path) as image:
        exif = image.getexif()
        folders = [dict(exif.get_ifd(folder)) for folder in (EXIF_FOLDER, GPS_FOLDER)]
        tags = {tag: value for tag, value in exif.items() if tag not in (DESCRIPTION, EXIF_FOLDER, GPS_FOLDER)}
        return (
            tags,
            folders,
            [np.asarray(frame).tobytes() for frame in ImageSequence.Iterator(image)],
            image.info.get("jfif_density"),
        )


def description(path) -> str | None:
    with Image.open(path) as image:
        return image.getexif().get(DESCRIPTION)


def camera_exif(endian: str = "<") -> Image.Exif:
    exif = Image.Exif()
    exif.endian = endian
    exif[MAKE], exif[ORIENTATION] = "A camera", 6
    exif.get_ifd(EXIF_FOLDER)[MAKER_NOTE] = bytes(range(200))
    exif.get_ifd(GPS_FOLDER)[2] = tuple(TiffImagePlugin.IFDRational(n, 1) for n in (52, 30, 1))
    return exif


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 51, 4), np.uint8))


@pytest.mark.parametrize("endian", ["<", ">", None])
@pytest.mark.parametrize(
    ("name", "mode", "how"),
    [
        ("a.jpg", "RGB", {"dpi": (300, 300)}),
        ("a.jpg", "CMYK", {"progressive": True}),
        ("a.png", "RGBA", {}),
        ("a.png", "L", {"dpi": (72, 72)}),
        ("a.webp", "RGB", {}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.webp", "RGBA", {}),
        ("a.webp", "RGBA", {"lossless": True}),
        ("a.webp", "RGB", {"xmp": b"<x:xmpmeta/>"}),
    ],
)
def test_only_the_description_is_new(tmp_path, noise, name, mode, how, endian):
    path = tmp_path / name
    noise.convert(mode).save(path, **how, **({"exif": camera_exif(endian)} if endian else {}))
    os.utime(path, (10**9, 10**9))
    path.chmod(0o640)
    before = content(path)
    for text in ("a dog", "x", "", "a much longer caption of a dog on a beach, " * 20, "café"):
        assert embed(path, [text], Existing.overwrite)
        read = description(path)
        assert (read or "") == text or read.encode("latin-1").decode() == text
        assert content(path) == before
        assert path.stat().st_mtime == 10**9 and path.stat().st_mode & 0o777 == 0o640
    with Image.open(path) as image:
        assert "xmp" not in how or image.info["xmp"] == how["xmp"]
    assert os.listdir(tmp_path) == [name]


def test_animations_keep_their_frames(tmp_path):
    frames = [Image.new("RGB", (9, 9), colour) for colour in COLOURS]
    for name in ("a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        before = content(tmp_path / name)
        embed(tmp_path / name, ["five colours"], Existing.keep)
        assert content(tmp_path / name) == before and len(before[2]) == 5
        assert description(tmp_path / name) == "five colours"


def test_descriptions_that_are_there(tmp_path, noise):
    exif = Image.Exif()
    exif[DESCRIPTION] = "by hand"
    path = tmp_path / "a.jpg"
    noise.convert("RGB").save(path, exif=exif)
    whole = path.read_bytes()
    assert not embed(path, ["a dog"], Existing.keep) and path.read_bytes() == whole
    for _ in range(2):
        assert embed(path, ["a dog"], Existing.append) and description(path) == "by hand\na dog", "never twice"
        assert embed(path, ["a cat"], Existing.prepend)
        assert description(path) == "a cat\nby hand\na dog"
        embed(path, ["by hand"], Existing.overwrite)


def test_what_cannot_be_done_changes_nothing(tmp_path, noise):
    noise.convert("RGB").save(tmp_path / "a.bmp")
    noise.convert("RGB").save(tmp_path / "cut.jpg", exif=camera_exif())
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    at = whole.index(b"Exif\0\0") + 10
    (tmp_path / "exif.jpg").write_bytes(whole[:at] + b"\xff\xff\xff\x7f" + whole[at + 4 :])
    (tmp_path / "long.jpg").write_bytes(whole)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path in before:
        with pytest.raises(EvcapError, match=path.name) as caught:
            embed(path, ["x" * (70_000 if path.stem == "long" else 1)], Existing.keep)
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_cut_of_a_file_is_one_line_or_nothing_changed(tmp_path, noise):
    for name in ("a.jpg", "a.png", "a.webp"):
        noise.convert("RGB").save(tmp_path / name, exif=camera_exif())
        whole = (tmp_path / name).read_bytes()
        for cut in range(0, len(whole), max(len(whole) // 40, 1)):
            (tmp_path / name).write_bytes(whole[:cut])
            with pytest.raises(EvcapError):
                embed(tmp_path / name, ["a dog"], Existing.keep)
            assert (tmp_path / name).read_bytes() == whole[:cut]


def test_through_the_command(fake, photos):
    Image.new("RGB", (20, 20), COLOURS[0]).save("a.gif")
    told = run("caption", "p1.png", "a.gif", "--embed", "--prefix", "so: ", code=1).stderr
    assert description("p1.png") == f"so: {said(COLOURS[1])}"
    assert "a.gif: captions can be written into JPEG, PNG and WebP files only" in told
    assert "1 text was there before and was kept" in run("caption", "p1.png", "--embed", "--quiet").stderr
    assert Path("p1.png").read_bytes().count(b"eXIf") == 1


def test_descriptions_of_other_types(tmp_path, noise):
    """UTF-8, which EXIF 3 knows, is kept; what is no text is not touched."""
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[DESCRIPTION] = "by me"
    noise.convert("RGB").save(path, exif=exif)
    whole = path.read_bytes()
    entry = next(e for e in (b"\x0e\x01\x02\0", b"\x01\x0e\0\x02") if e in whole)
    for kind, fails in ((129, False), (7, True)):
        path.write_bytes(whole.replace(entry, entry.replace(b"\x02", bytes([kind])), 1))
        before = path.read_bytes()
        if fails:
            with pytest.raises(EvcapError, match="its description is of type 7"):
                embed(path, ["a dog"], Existing.keep)
        else:
            assert not embed(path, ["a dog"], Existing.keep)
        assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_what_follows_the_image_stays(tmp_path, noise, name):
    path = tmp_path / name
    noise.convert("RGB").save(path)
    path.write_bytes(path.read_bytes() + b"TRAILER")
    assert embed(path, ["a dog"], Existing.keep)
    assert path.read_bytes().endswith(b"TRAILER") and description(path) == "a dog"
