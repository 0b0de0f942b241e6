"""Results on their way out: lines of text, JSONL or CSV, written so that an interrupted run can be continued."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from evcap.errors import EvcapError
from evcap.files import write_text


class Format(StrEnum):
    text = "text"
    jsonl = "jsonl"
    csv = "csv"


@dataclass(frozen=True)
class Result:
    """What became of one picture. names: (name, cosine similarity), best first. error: one line or None."""

    file: str
    captions: list[str] = field(default_factory=list)
    names: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None

    @property
    def caption(self) -> str | None:
        """The best caption."""
        return self.captions[0] if self.captions else None

    def line(self, form: Format) -> str:
        """This result in one of the formats, with its line end."""
        if form == Format.jsonl:
            names = [{"name": name, "similarity": round(float(similarity), 4)} for name, similarity in self.names]
            fields = {"file": self.file, "caption": self.caption, "captions": self.captions, "names": names}
            return json.dumps({**fields, "error": self.error}) + "\n"
        names = [f"{name} {similarity:.2f}" for name, similarity in self.names]
        if form == Format.csv:
            return _csv_line([self.file, self.caption, " | ".join(self.captions), "; ".join(names), self.error])
        lines = [self.file, *(f"  {caption}" for caption in self.captions)]
        lines += [f"  names: {', '.join(names)}"] if names else []
        lines += [f"  error: {self.error}"] if self.error else []
        return "\n".join(lines) + "\n"


def _csv_line(cells: list[str | None]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


COLUMNS = ["file", "caption", "captions", "names", "error"]
HEADERS = {Format.text: "", Format.jsonl: "", Format.csv: _csv_line(COLUMNS)}


class ResultWriter:
    """Standard output (path None), a device or pipe, or a file.

    A file grows as FILE.part, each line flushed, and takes the name FILE in `complete`: an older FILE stays whole until
    then, and `resume` continues from FILE.part or else from FILE. `finished` holds the pictures found there without
    error; lines of failed pictures, which are tried again, and a last line that was torn are dropped.
    Raises EvcapError for a file that cannot be written or lines that cannot be continued.
    """

    def __init__(self, path: Path | None, form: Format, resume: bool = False):
        self.path, self.form = path, form
        self.finished: set[str] = set()
        self.part: Path | None = None
        to_file = path is not None and (path.is_file() or not path.exists())
        if resume and (not to_file or form == Format.text):
            raise EvcapError("--resume reads finished lines: give --output a file, and --format jsonl or csv")
        if to_file:
            self.part = path.with_name(path.name + ".part")
            lines = self._finished_lines() if resume else {}
            self.finished = set(lines)
            with _saying(f"cannot write {self.part}"):
                write_text(self.part, HEADERS[form] + "".join(lines.values()))
        self._stream = None if path is None else self._open(self.part or path)
        if not to_file:
            self._put(HEADERS[form])

    def _open(self, path: Path):
        with _saying(f"cannot write {path}"):
            return open(path, "a", encoding="utf-8", errors="surrogateescape", newline="")

    def _finished_lines(self) -> dict[str, str]:
        path = self.part if self.part.exists() else self.path
        if not path.exists():
            return {}
        with _saying(f"cannot read {path}"):
            text = path.read_bytes().decode(errors="surrogateescape")
        rows = _read_jsonl(text, path) if self.form == Format.jsonl else _read_csv(text, path)
        return {file: line for file, line, error in rows if not error}

    def _put(self, text: str) -> None:
        stream = self._stream or sys.stdout  # looked up each time: a progress bar may stand in for it
        try:
            stream.write(text)
            stream.flush()
        except OSError as error:
            if self._stream is None:
                raise
            with suppress(OSError):  # it tries once more to write what could not be written
                self._stream.close()
            raise EvcapError(f"cannot write {self.part or self.path}: {error.strerror}") from None

    def write(self, result: Result) -> None:
        """Add the line of one result; on return it has left this process."""
        self._put(result.line(self.form))

    def close(self) -> None:
        """Let go of the file; what is finished stays in FILE.part."""
        if self.path is not None:
            with _saying(f"cannot write {self.path}"):
                self._stream.close()

    def complete(self) -> None:
        """All results are written: FILE.part becomes FILE."""
        self.close()
        if self.part is not None:
            with _saying(f"cannot write {self.path}"):
                os.replace(self.part, self.path)


@contextmanager
def _saying(what: str):
    try:
        yield
    except OSError as error:
        raise EvcapError(f"{what}: {error.strerror}") from None


def _read_jsonl(text: str, path: Path):
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            yield row["file"], line + "\n", row["error"]
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise EvcapError(f"{path}, line {number}: not a line of evcap caption, cannot resume from it") from None


def _read_csv(text: str, path: Path):
    rows = list(csv.reader(io.StringIO(text)))
    if rows and rows[0] != COLUMNS and (len(rows) > 1 or text.endswith("\n")):
        raise EvcapError(f"{path}: its columns are not {','.join(COLUMNS)}, cannot resume from it")
    for number, row in enumerate(rows[1:], 2):
        if len(row) == len(COLUMNS):
            yield row[0], _csv_line(row), row[4]
        elif number < len(rows):
            raise EvcapError(f"{path}, row {number}: not a row of evcap caption, cannot resume from it")


class Sidecars:
    """photo.txt beside photo.jpg, one caption a line. `refused`: why a picture gets none (something would be lost)."""

    def __init__(self, files: list[Path]):
        self.refused: dict[Path, str] = {}
        owners = {os.path.abspath(file): file for file in files}  # a sidecar must not overwrite a picture
        for file in files:
            owner = owners.setdefault(os.path.abspath(sidecar_path(file)), file)
            if owner is not file:
                self.refused[file] = f"{file}: its sidecar {sidecar_path(file)} would overwrite that of {owner}"
            if sidecar_path(file) == file:
                self.refused[file] = f"{file}: its sidecar would overwrite the picture"

    def write(self, file: Path, captions: list[str]) -> str | None:
        """Write the sidecar of one picture; returns the reason in one line if that is refused or fails."""
        if file in self.refused:
            return self.refused[file]
        try:
            write_text(sidecar_path(file), "".join(f"{caption}\n" for caption in captions))
        except OSError as error:
            return f"{file}: cannot write its sidecar {sidecar_path(file)}: {error.strerror}"
        return None


def sidecar_path(file: Path) -> Path:
    """The text file beside a picture."""
    return file.with_suffix(".txt")
