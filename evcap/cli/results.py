"""Results on their way out: what became of one image, as a line of text, JSONL or CSV. Written by evcap.cli.result_file."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from evcap.errors import EvcapError

Wanted = Callable[[str], Sequence[str] | None]  # an image's absolute path -> ids of its lines


class Format(StrEnum):
    text = "text"
    jsonl = "jsonl"
    csv = "csv"
    metadata = "metadata"


class TableFormat(StrEnum):
    """The formats of results that are no training text."""

    text = "text"
    jsonl = "jsonl"
    csv = "csv"


@dataclass(frozen=True)
class Result:
    """What became of one image. names: (name, cosine similarity), best first. error: one line or None.

    folder: of the file that a metadata line is written to, which tells paths from there.
    """

    file: str
    captions: list[str] = field(default_factory=list)
    names: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None
    folder: str = ""

    COLUMNS: ClassVar = ("file", "caption", "captions", "names", "error")
    FIELDS: ClassVar = COLUMNS  # of JSONL

    @property
    def caption(self) -> str | None:
        """The best caption."""
        return self.captions[0] if self.captions else None

    def line(self, form: str) -> str:
        """This result in one of the formats, with its line end; "" for a failed image in metadata, which has no place."""
        if form == Format.metadata:
            name = Path(os.path.relpath(self.file, self.folder or None)).as_posix()
            return json.dumps({"file_name": name, "text": self.caption}) + "\n" if self.captions else ""
        if form == Format.jsonl:
            return _json_line(self, self.file, self.caption, self.captions, named(self.names), self.error)
        names = [f"{name} {similarity:.2f}" for name, similarity in self.names]
        if form == Format.csv:
            return csv_line([self.file, self.caption, " | ".join(self.captions), "; ".join(names), self.error])
        lines = [self.file, *(f"  {caption}" for caption in self.captions)]
        lines += [f"  names: {', '.join(names)}"] if names else []
        lines += [f"  error: {self.error}"] if self.error else []
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class NamesResult:
    """The names of one image: (name, cosine similarity, query that found it), best first. error: one line or None."""

    file: str
    names: list[tuple[str, float, int]] = field(default_factory=list)
    error: str | None = None

    COLUMNS: ClassVar = ("file", "names", "queries", "error")
    FIELDS: ClassVar = ("file", "names", "error")

    def line(self, form: str) -> str:
        """As Result.line. Text of a failed image is "": what is wrong is told on standard error."""
        if form == Format.jsonl:
            names = [{"name": n, "similarity": round(float(s), 4), "query": int(query)} for n, s, query in self.names]
            return _json_line(self, self.file, names, self.error)
        if form == Format.csv:
            names = "; ".join(f"{name} {similarity:.2f}" for name, similarity, _ in self.names)
            return csv_line([self.file, names, "; ".join(str(query) for *_, query in self.names), self.error])
        if self.error:
            return ""
        head = f"{self.file}\n  similarity  query  name\n" if self.names else f"{self.file}\n  the memory gave no names\n"
        return head + "".join(f"  {similarity:10.3f}  {query:5d}  {name}\n" for name, similarity, query in self.names)


def named(names: Sequence[tuple[str, float]]) -> list[dict]:
    """Names and their similarities as JSONL has them."""
    return [{"name": name, "similarity": round(float(similarity), 4)} for name, similarity in names]


def _json_line(result: Result | NamesResult, *values) -> str:
    return json.dumps(dict(zip(result.FIELDS, values, strict=True))) + "\n"


def csv_line(cells: Sequence[str | None]) -> str:
    """One row with its line end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def header(kind: type, form: str) -> str:
    """What stands above the lines of a kind of results."""
    return csv_line(kind.COLUMNS) if form == Format.csv else ""


def finished_lines(
    text: str, path: Path, kind: type, form: str, folder: Path, wanted: Wanted | None = None, growing: bool = False
) -> dict[str, str]:
    """{image's absolute path: its lines} for each image that `text`, the content of `path`, tells of without error.

    Paths in it are relative to `folder`, those in metadata to the folder of `path`. A last line that was torn is left out.
    wanted: of results with a line for each of several ids, those that an image must have; None where nobody can tell, which
    leaves out the last image of a file that was `growing`. Raises EvcapError for lines that `kind` does not write in this
    format.
    """
    base = path.absolute().parent if form == Format.metadata else folder
    if form == Format.csv:
        rows = _read_csv(text, path, kind.COLUMNS)
    else:
        rows = _read_json(text, path, ("file_name", "text") if form == Format.metadata else kind.FIELDS)
    told = [(os.path.abspath(base / file), row, line) for file, row, line in rows]
    if wanted is None:
        return {file: line for file, row, line in told if not row.get("error")}
    found: dict[str, list[tuple[dict, str]]] = {}
    for file, row, line in told:
        found.setdefault(file, []).append((row, line))
    last = told[-1][0] if told and growing else None
    whole = {}
    for file, lines in found.items():
        ids, expected = [told_id(row["id"]) for row, _ in lines], wanted(file)
        if not any(row["error"] for row, _ in lines) and (ids == expected if expected is not None else file != last):
            whole[file] = "".join(line for _, line in lines)
    return whole


def told_id(key: int | str | None) -> str:
    """An id as CSV has it."""
    return "" if key is None else str(key)


def _read_json(text: str, path: Path, columns: tuple[str, ...]) -> Iterator[tuple]:
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if tuple(row) != columns or not isinstance(row[columns[0]], str):
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            if number < len(lines):
                columns_told = ", ".join(columns)
                raise EvcapError(f"{path}, line {number}: not a line with {columns_told}, cannot resume from it") from None
        else:
            yield row[columns[0]], row, line + "\n"


def _read_csv(text: str, path: Path, columns: tuple[str, ...]) -> Iterator[tuple]:
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise EvcapError(f"{path} is no CSV ({error}), cannot resume from it") from None
    if rows and tuple(rows[0]) != columns and (len(rows) > 1 or text.endswith("\n")):
        raise EvcapError(f"{path}: its columns are not {','.join(columns)}, cannot resume from it")
    for number, row in enumerate(rows[1:], 2):
        if len(row) == len(columns):
            yield row[0], dict(zip(columns, row, strict=True)), csv_line(row)
        elif number < len(rows):
            raise EvcapError(f"{path}, row {number}: not a row of {','.join(columns)}, cannot resume from it")
