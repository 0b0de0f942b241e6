"""What may be opened as a raster: local files of a few formats, known by how they begin. A VRT can name other files, addresses
and code: none of it may make this program fetch or run anything."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

from evcap.errors import EvcapError

READ = "GeoTIFF, COG, JPEG 2000, VRT, PNG, JPEG"
STARTS = {
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "GTiff"),
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}
DEEPEST = 16  # VRTs inside of one another
UNREADABLE = "a VRT with a source that cannot be read: "
SOURCES = ("sourcefilename", "sourcedataset")  # the elements of a VRT that name files; GDAL ignores case


class RasterError(EvcapError):
    """A file that cannot be read as a raster, with the reason in one line."""


def driver_of(path: Path) -> str:
    """GDAL's name of the file's format. Raises RasterError for what is no such file, and for a VRT with a source that is not
    one, that is made of itself, or that runs Python."""
    return _driver_of(path, set(), ())


def driver_named(head: bytes) -> str | None:
    """GDAL's name of the format of a file that begins so (4096 bytes); None if it is not read here."""
    if b"<VRTDataset" in head:
        return "VRT"
    return next((driver for start, driver in STARTS.items() if head.startswith(start)), None)


def _driver_of(path: Path, checked: set[Path], around: tuple[Path, ...]) -> str:
    """checked: VRTs that need no other look. around: those that this file is a source of."""
    head, tail = _ends(path)
    driver = driver_named(head)
    if driver == "VRT":
        file = path.resolve()
        if file in around:
            raise RasterError(f"{path}: a VRT that is a source of itself; write it again from the images")
        if len(around) == DEEPEST:
            raise RasterError(f"{path}: a VRT inside {DEEPEST} others; write one from the images themselves")
        if file not in checked:
            _check_vrt(path, checked, (*around, file))
            checked.add(file)
    if driver is None:
        raise RasterError(f"{path}: not a raster that is read here ({READ}); convert it with gdal_translate")
    if driver == "PNG" and b"IEND" not in tail:  # GDAL would make up what is missing
        raise RasterError(f"{path}: cut short (the end of the PNG is missing); get a fresh copy")
    return driver


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first and the last 4096 bytes."""
    if not path.exists():
        elsewhere = str(path).startswith("/vsi") or ":/" in str(path)
        raise RasterError(f"{path}: {'only local files are read; download it' if elsewhere else 'there is no such file'}")
    if not path.is_file():
        raise RasterError(f"{path}: {'a folder' if path.is_dir() else 'not a regular file'}; name a raster file")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            file.seek(-len(head), os.SEEK_END)
            tail = file.read()
    except PermissionError:
        raise RasterError(f"{path}: no permission to read it") from None
    if not head:
        raise RasterError(f"{path}: the file is empty (0 bytes); get a fresh copy")
    return head, tail


def _check_vrt(path: Path, checked: set[Path], around: tuple[Path, ...]) -> None:
    sources = {}  # each once, in order
    try:
        for _, element in ElementTree.iterparse(path):
            tag, text = element.tag.lower(), (element.text or "").strip()
            if tag in SOURCES:
                relative = {key.lower(): value for key, value in element.attrib.items()}.get("relativetovrt") == "1"
                sources[path.absolute().parent / text if relative else Path(text)] = None
            elif tag == "pixelfunctionlanguage" and text.lower() != "c":
                raise RasterError(f"{path}: a VRT that runs {text} code, which is not run here; convert it with gdal_translate")
            elif "/vsi" in text:
                raise RasterError(f"{path}: a VRT that needs {text[:200]}; only local files are read")
            element.clear()
    except (ElementTree.ParseError, UnicodeError, ValueError) as error:
        raise RasterError(f"{path}: damaged or cut short ({error}); get a fresh copy") from None
    for source in sources:
        try:
            if "/vsi" in str(source):
                raise RasterError(f"{source}: only local files are read")
            _driver_of(source, checked, around)
        except (RasterError, OSError, ValueError) as error:  # a source may be anything: an address, XML, too long a name
            reason = " ".join(str(error).split()).rpartition(UNREADABLE)[2]  # of VRTs of VRTs the innermost
            raise RasterError(f"{path}: {UNREADABLE}{reason[:300]}") from None
