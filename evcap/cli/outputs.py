"""Files that a user names as outputs: refused, before anything else is done, where something would be lost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from evcap.errors import EvcapError
from evcap.files import is_text
from evcap.plots.png import is_drawing

# of images and rasters, which no text output replaces, not even one that no other sign tells from text
PICTURES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"),
    *(".heic", ".heif", ".vrt", ".jp2", ".j2k", ".img"),
}
DRAWINGS = ("--plot", "--overlay")
KINDS = {"--evidence": {".geojson", ".json"}}  # suffixes of files that are replaced


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[str | Path]) -> None:
    """Raises EvcapError, one line, for an output that is an input (by whatever path or link), somebody's image, or
    another output, or that cannot be written. outputs: option -> the file it names.
    """
    named = {option: path for option, path in outputs.items() if path is not None}
    if not named:
        return
    owners = {identity: path for path in inputs for identity in _identities(path)}
    for option, path in named.items():
        known = next((owners[identity] for identity in _identities(path) if identity in owners), None)
        if known is not None:
            other = f"the file of {known}" if known in named else f"{known}, a file of this run"
            raise EvcapError(f"{option} {path} is {other} too, which would be lost; name another file")
        owners |= dict.fromkeys(_identities(path), option)
        check_replaceable(option, path)
        folder = path.absolute().parent
        if not os.access(folder, os.W_OK | os.X_OK) and not path.exists():
            reason = "no permission to write there" if folder.is_dir() else f"there is no folder {path.parent}"
            raise EvcapError(f"cannot write {path}: {reason}")


def check_replaceable(option: str, path: Path) -> None:
    """Raises EvcapError for an existing file that is no earlier output of this kind: a drawing, a GeoJSON, else a text."""
    try:
        if path.is_dir():
            raise EvcapError(f"cannot write {path}: Is a directory")
        if not path.is_file() or path.stat().st_size == 0:
            return
        if option in DRAWINGS:
            fits = is_drawing(path)
        else:
            fits = path.suffix.lower() in KINDS.get(option, {path.suffix.lower()}) - PICTURES and is_text(path)
    except OSError as error:
        raise EvcapError(f"cannot write {path}: {error.strerror}") from None
    if not fits:
        raise EvcapError(f"{option} {path} exists and is no earlier result of evcap; delete it first, or name another file")


def _identities(path: str | Path) -> list:
    """What two spellings or links of one file have in common: its real path, and device and inode where it exists."""
    found: list = [os.path.realpath(path)]
    try:
        state = os.stat(path)
    except OSError:
        return found
    return [*found, (state.st_dev, state.st_ino)]


def check_folder(option: str, folder: Path) -> None:
    """Raises EvcapError for a folder that cannot be made, or in which nothing can be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise EvcapError(f"cannot use {option} {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise EvcapError(f"cannot use {option} {folder}: no permission to write in {there}")
