"""Captions beside their images (photo.txt beside photo.jpg), and how they go together with text that is there already."""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from evcap.cli.outputs import PICTURES
from evcap.errors import EvcapError
from evcap.files import encoded, is_text, read_regular, replacing

MOST = 10_000_000  # bytes of a text that captions are joined with


class Existing(StrEnum):
    """What becomes of a text that is there already."""

    keep = "keep"
    overwrite = "overwrite"
    append = "append"
    prepend = "prepend"


def joined(old: bytes, new: bytes, existing: Existing) -> bytes:
    """Old and new lines as one text, each on lines of their own; the same text if the new ones stand there already.

    With `keep` the old text, if there is one, stays as it is.
    """
    if not old or existing == Existing.overwrite:
        return new
    if existing == Existing.keep:
        return old
    ended = old if old.endswith(b"\n") else old + b"\n"
    if existing == Existing.append:
        return old if f"\n{ended.decode('latin-1')}".endswith(f"\n{new.decode('latin-1')}") else ended + new
    return old if ended.startswith(new) else new + old


def checked_extension(extension: str) -> str:
    """The extension of sidecars. Raises EvcapError for none, and for one of images."""
    if not extension.startswith(".") or len(extension) < 2 or set("/\\\0") & set(extension):
        raise EvcapError(f"--extension '{extension}': give one with its dot, as .txt or .caption")
    if extension.lower() in PICTURES:
        raise EvcapError(f"--extension {extension}: files of that kind are images; give one of texts, as .txt")
    return extension


class Sidecars:
    """photo.txt beside photo.jpg, one caption a line. `refused`: why an image gets none (something would be lost).

    kept: how many texts that were there stayed as they were, as `existing` has it.
    """

    def __init__(self, files: Iterable[Path], extension: str = ".txt", existing: Existing = Existing.keep):
        self.extension, self.existing, self.kept = checked_extension(extension), existing, 0
        self.refused: dict[Path, str] = {}
        files = list(files)
        owners = {os.path.abspath(file): file for file in files}  # a sidecar must not overwrite an image
        for file in files:
            owner = owners.setdefault(os.path.abspath(self.path(file)), file)
            if owner is not file:
                self.refused[file] = f"{file}: its sidecar {self.path(file)} would overwrite that of {owner}"
            if self.path(file) == file:
                self.refused[file] = f"{file}: its sidecar would overwrite the image"

    def path(self, file: Path) -> Path:
        """The text file beside an image."""
        return file.with_suffix(self.extension)

    def finished(self, file: Path) -> bool:
        """Whether a resumed run leaves an image out. Joined captions are compared, so that no text gets them twice."""
        joins = self.existing in (Existing.append, Existing.prepend)
        return not joins and file not in self.refused and self.path(file).exists()

    def write(self, file: Path, captions: list[str]) -> str | None:
        """Write the sidecar of one image; returns the reason in one line if that is refused or fails."""
        if file in self.refused:
            return self.refused[file]
        path = self.path(file)
        try:
            old = b""
            if path.is_dir():
                return f"{file}: cannot write its sidecar {path}: Is a directory"
            if path.exists():
                if self.existing == Existing.keep:
                    self.kept += 1
                    return None
                old = read_regular(path, MOST)
                if not is_text(path):
                    return f"{file}: its sidecar {path} exists and is no text; move it away"
            new = joined(old, encoded("".join(f"{caption}\n" for caption in captions)), self.existing)
            if new != old:
                with replacing(path) as temporary:
                    temporary.write_bytes(new)
        except OSError as error:
            return f"{file}: cannot write its sidecar {path}: {error.strerror}"
        return None
