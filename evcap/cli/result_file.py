"""Where results go: standard output, a device, or a file that an interrupted run can be continued from."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from evcap.cli.region_results import RegionResults
from evcap.cli.results import Format, NamesResult, Result, Wanted, finished_lines, header
from evcap.errors import EvcapError
from evcap.files import WRITABLE, read_regular, replacing, write_text

MOST_SETTINGS = 100_000  # bytes of FILE.part.json


class ResultWriter:
    """Standard output (path None), a device or pipe, or a file.

    A file grows as FILE.part, each line flushed, and takes the name FILE in `complete`: an older FILE stays whole until
    then, and `resume` continues from FILE.part or else from FILE. `finished` holds the absolute paths of images found
    there without error; lines of failed images, which are tried again, and a last line that was torn are dropped.
    FILE.part is locked while this is open, and FILE.part.json beside it tells the settings that its lines were made with.
    settings: name -> value, plain. kind: what is written, with COLUMNS, FIELDS and `line(form)`. wanted: for a kind that
    writes several lines of an image, see `finished_lines`; an image some of whose lines are missing is not finished.
    Raises EvcapError for a file that cannot be written, that another run is writing, or whose lines would be lost or
    cannot be continued, among others because they were made with other settings.
    """

    def __init__(
        self,
        path: Path | None,
        form: str,
        resume: bool = False,
        settings: Mapping[str, object] | None = None,
        kind: type[Result] | type[NamesResult] | type[RegionResults] = Result,
        wanted: Wanted | None = None,
    ):
        self.path, self.form, self.kind, self._wanted = path, form, kind, wanted
        self.finished: set[str] = set()
        self.remark = ""  # on the lines that are continued
        self.part: Path | None = None
        self._stream: IO | None = None
        to_file = path is not None and (path.is_file() or not path.exists())
        if resume and (not to_file or form == Format.text):
            raise EvcapError("--resume reads finished lines: give --output a file, and --format jsonl or csv")
        if to_file:
            target = Path(os.path.realpath(path)) if path.is_symlink() else path  # a link is written through
            self.part = target.with_name(target.name + ".part")
            self._target, self._settings_file = target, target.with_name(target.name + ".part.json")
            self._begin(resume, {"format": str(form)} | dict(settings or {}))
        elif path is not None:
            with _saying(f"cannot write {path}"):
                self._stream = _open(path)
        if not to_file:
            self._put(header(kind, form))

    def _begin(self, resume: bool, settings: dict) -> None:
        """Open FILE.part, locked, with the finished lines in it."""
        with _saying(f"cannot write {self.part}"):
            self._stream = _locked(self.part)
        try:
            told = self._told()
            if resume:
                lines = self._lines(told)
                self._check_settings(told, settings)
            else:
                lines = {}
                self._check_unfinished()
            self.finished = set(lines)
            with _saying(f"cannot write {self.part}"):
                self._replace(header(self.kind, self.form) + "".join(lines.values()))
                write_text(self._settings_file, json.dumps(settings | {"folder": os.getcwd()}) + "\n")
        except BaseException:
            self.close()
            raise

    def _replace(self, text: str) -> None:
        """FILE.part becomes `text` at one stroke, and the new file is locked before the old one is let go."""
        with replacing(self.part) as temporary:
            stream = _open(temporary)
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stream.write(text)
            stream.flush()
        self._stream.close()
        self._stream = stream

    def _check_unfinished(self) -> None:
        text = self._read(self.part)
        if text and text != header(self.kind, self.form):
            way = "delete it" if self.form == Format.text else "go on with --resume, or delete it"
            raise EvcapError(f"{self.part} holds what an interrupted run finished: {way} to start anew")

    def _lines(self, told: dict) -> dict[str, str]:
        """Finished lines of FILE.part or else FILE."""
        path = self.part if self._read(self.part) else self._target
        if not path.exists():
            return {}
        if not told:
            self.remark = f"{path} does not tell with which settings"
        folder = Path(told.get("folder", os.getcwd()) if path == self.part else os.getcwd())
        growing = path == self.part
        return finished_lines(self._read(path), path, self.kind, self.form, folder, self._wanted, growing)

    @staticmethod
    def _read(path: Path) -> str:
        with _saying(f"cannot read {path}"):
            return path.read_bytes().decode(errors="surrogateescape")

    def _told(self) -> dict:
        """What FILE.part.json tells; nothing if it is absent or FILE.part is empty."""
        if not self._settings_file.exists() or not self.part.stat().st_size:
            return {}
        with _saying(f"cannot read {self._settings_file}"):
            text = read_regular(self._settings_file, MOST_SETTINGS)
        try:
            told = json.loads(text)
            if not isinstance(told, dict) or not isinstance(told.get("folder"), str):
                raise ValueError
        except (ValueError, RecursionError):
            raise EvcapError(f"{self._settings_file} is damaged; delete it and {self.part} to start anew") from None
        return told

    def _check_settings(self, told: dict, settings: dict) -> None:
        if told.get("folder", os.getcwd()) != os.getcwd() and self.form != Format.metadata:
            raise EvcapError(f"{self.part} names images as seen from {told['folder']}: resume it there")
        others = [f"{name} ({told[name]}, now {value})" for name, value in settings.items() if told.get(name, value) != value]
        if others:
            made = f"the lines of {self.part} were made with another {', '.join(others)}"
            raise EvcapError(f"{made}: resume with the same settings, or delete it to start anew")

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

    def is_finished(self, file: Path) -> bool:
        """Whether an image, by whatever relative or absolute path, has its line."""
        return os.path.abspath(file) in self.finished

    def write(self, result: Result | NamesResult | RegionResults) -> None:
        """Add the lines of one result; on return they have left this process."""
        self._put(result.line(self.form))

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *caught) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what is finished stays in FILE.part, which goes if nothing is."""
        stream, self._stream = self._stream, None
        if stream is None or stream.closed:
            return
        with _saying(f"cannot write {self.part or self.path}"):
            if self.part is not None and self._read(self.part) in ("", header(self.kind, self.form)):
                self._settings_file.unlink(missing_ok=True)
                self.part.unlink(missing_ok=True)  # while it is locked
            stream.close()

    def complete(self) -> None:
        """All results are written: FILE.part becomes FILE."""
        if self.part is None:
            return self.close()
        stream, self._stream = self._stream, None
        with _saying(f"cannot write {self.path}"):
            self._settings_file.unlink(missing_ok=True)
            os.replace(self.part, self._target)
            stream.close()


def _open(path: Path) -> IO:
    return open(path, "a", encoding="utf-8", errors=WRITABLE, newline="")


def _locked(path: Path) -> IO:
    """The file, which is made if it is absent, locked as long as it is open. May raise OSError."""
    while True:
        stream = _open(path)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise EvcapError(f"another run is writing {path}: wait until it is done, or name another file") from None
        except BaseException:
            stream.close()
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                return stream
        stream.close()  # the other run has just finished, and the file has its final name by now


@contextmanager
def _saying(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvcapError(f"{what}: {error.strerror}") from None
