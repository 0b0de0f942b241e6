"""What is refused from a header alone, before anything is decoded, and how that is counted."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evcap.images import limits as image_limits
from evcap.images import opening as images
from evcap.images.limits import bytes_needed, count_scans
from evcap.images.opening import ImageError, open_image


def progressive(extra: int = 0, comment: bytes = b"", tail: bytes = b"") -> bytes:
    """A JPEG of 64 x 48 pixels whose last scan comes `extra` times more."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", progressive=True, comment=comment)
    data = stream.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * extra + b"\xff\xd9" + tail


def scans_written(data: bytes) -> int:
    """By walking byte by byte."""
    place, scans = 2, 0
    while data[place + 1] != 0xD9:
        scans += data[place + 1] == 0xDA
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
        while data[place] != 0xFF or data[place + 1] == 0 or 0xD0 <= data[place + 1] <= 0xD7:
            place += 1
    return scans


@pytest.mark.parametrize("extra", [0, 1, 30])
def test_scans_are_counted_up_to_the_end_marker(extra):
    plain = progressive(extra)
    assert count_scans(plain) == scans_written(plain) == scans_written(progressive()) + extra
    disguised = progressive(extra, comment=b"\xff\xda" * 50, tail=plain + b"\xff\xda" * 99)  # as a second image, a film
    assert count_scans(disguised) == count_scans(plain)


def test_a_jpeg_of_many_scans_is_refused_undecoded(tmp_path, monkeypatch):
    (tmp_path / "few.jpg").write_bytes(progressive(tail=b"\xff\xda" * 5000))
    (tmp_path / "many.jpg").write_bytes(progressive(40))
    monkeypatch.setattr(image_limits, "MOST_SCANNED", 64 * 48 * 40)
    assert open_image(tmp_path / "few.jpg").size == (64, 48)
    monkeypatch.setattr(Image.core, "jpeg_decoder", lambda *a: pytest.fail("it was decoded"), raising=False)
    with pytest.raises(ImageError, match="64 x 48 pixels in 50 scans would take minutes") as caught:
        open_image(tmp_path / "many.jpg", 8)
    assert "\n" not in str(caught.value)


def png_header(width: int, height: int, bits: int, kind: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("bits", [8, 16])
def test_a_picture_of_too_many_bytes_is_refused_undecoded(tmp_path, monkeypatch, bits):
    (tmp_path / "p.png").write_bytes(png_header(13_000, 13_000, bits, 6))
    monkeypatch.setattr(Image.core, "new", lambda *a: pytest.fail("pixels were allocated"))
    with pytest.raises(ImageError, match="13,000 x 13,000 pixels would take .* GB of memory, not decoded"):
        open_image(tmp_path / "p.png")


PEAK = """
import ctypes, sys
from pathlib import Path
from PIL import Image
from evcap.images.opening import open_image
from evcap.images.limits import bytes_needed

def peak():
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index("VmHWM:") + 1])

for path in sys.argv[1:]:
    with Image.open(path) as image:
        told = bytes_needed(image, False)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is as much as is held now
    before = peak()
    open_image(path)
    print(path, told, peak() - before)
"""
FILES = {"png": ["RGB", "RGBA", "L", "P", "I;16"], "webp": ["RGB", "RGBA"], "tif": ["RGB", "RGBA", "L", "P", "CMYK"]}


@pytest.mark.slow
def test_no_picture_takes_much_more_than_is_told(tmp_path):
    paths = [tmp_path / f"{number}.{suffix}" for suffix, modes in FILES.items() for number in range(len(modes))]
    for path, mode in zip(paths, (mode for modes in FILES.values() for mode in modes), strict=True):
        options = {"lossless": True, "quality": 0, "method": 0} if path.suffix == ".webp" else {}
        Image.new(mode, (4000, 3000)).save(path, **options)
    done = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    rows = [(Path(path).name, int(told), int(taken)) for path, told, taken in map(str.split, done.stdout.splitlines())]
    assert [row[0] for row in rows] == [path.name for path in paths]
    assert all(taken > told / 2 for _, told, taken in rows), rows
    assert not [row for row in rows if row[2] > 1.3 * row[1] + 20e6]


def test_large_pictures_are_opened_one_at_a_time(tmp_path, monkeypatch):
    held = []

    class Recorded:
        def __enter__(self):
            held.append(True)

        def __exit__(self, *caught):
            held.append(False)

    monkeypatch.setattr(images, "ONE_AT_A_TIME", Recorded())
    Image.new("RGB", (300, 200)).save(tmp_path / "p.png")
    open_image(tmp_path / "p.png")
    assert not held
    monkeypatch.setattr(images, "LARGE_BYTES", 100_000)
    open_image(tmp_path / "p.png")
    assert held == [True, False]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_room_for_a_tile_that_is_larger_than_the_picture(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    side = {"width": 16, "height": 16, "blockxsize": 32768, "blockysize": 32768, "tiled": True, "SPARSE_OK": True}
    rasterio.open(tmp_path / "p.tif", "w", "GTiff", count=3, dtype="uint8", photometric="RGB", **side).close()
    with Image.open(tmp_path / "p.tif") as image:
        assert bytes_needed(image, False) > 4e9
    with pytest.raises(ImageError, match="16 x 16 pixels would take 4.3 GB of memory"):
        open_image(tmp_path / "p.tif")
