"""Text, JSON and CSV files of other people's making: any usual encoding, a bounded size, one line for whatever is wrong."""

from __future__ import annotations

import codecs
import csv
import io
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from evcap.errors import EvcapError
from evcap.files import read_regular

LARGEST_TEXT = 2**28  # bytes
LARGEST_JSON = 2**32  # bytes; instances_train2017.json of COCO has 0.5 GB, LVIS 1.1 GB
MARKS = {  # UTF-32 first: its mark begins like that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DELIMITERS = ",;\t"
_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxstring, _brief.maxother = 2, 60, 60
_brief.maxlist = _brief.maxtuple = _brief.maxset = _brief.maxfrozenset = _brief.maxdict = 4


def brief(value) -> str:
    """The repr of plain data in one short line, whatever its size."""
    try:
        return _brief.repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return f"{type(value).__name__} of great length"


def one_line(message: object) -> str:
    """An error's message without line breaks, at most 200 characters of it."""
    text = " ".join(str(message)[:2000].split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def read_text(path: str | Path, most: int = LARGEST_TEXT, what: str = "a text file in UTF-8") -> str:
    """The text of a regular file of at most `most` bytes: UTF-8, or what its byte order mark, which is dropped, says.

    Raises EvcapError for a file that cannot be read, and for one that is not `what`.
    """
    content = _read(path, most)
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise EvcapError(f"{path} is not {what}: {one_line(error)}") from None


def read_json(path: str | Path, most: int = LARGEST_JSON):
    """The data of a JSON file of at most `most` bytes. Raises EvcapError for a file that cannot be read or is not JSON."""
    content = _read(path, most)
    try:
        return json.loads(content)  # knows byte order marks
    except (ValueError, RecursionError) as error:
        raise EvcapError(f"{path} is not JSON: {one_line(error)}") from None


def read_table(
    path: str | Path, needed: set[str], expected: str, aliases: Mapping[str, str] | None = None
) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(line, row) of each row of a CSV file whose columns include the `needed`, separated by commas, semicolons or tabs.

    expected: what the first line must be, in words. aliases: what a column may be called -> what it is called in the rows,
    where no other column is called so. Raises EvcapError for another first line and for what is no CSV file.
    """
    try:
        text = read_text(path, what="a CSV file in UTF-8")
        for delimiter in DELIMITERS:
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            known = {name: meant for name, meant in (aliases or {}).items() if meant not in names}
            reader.fieldnames = [known.get(name, name) for name in names]
            if needed <= set(reader.fieldnames):
                break
        else:
            raise EvcapError(f"{path}: {expected}")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise EvcapError(f"{path} is not a CSV file in UTF-8: {error}") from None


def _read(path: str | Path, most: int) -> bytes:
    try:
        return read_regular(path, most)
    except OSError as error:
        raise EvcapError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise EvcapError(f"cannot read {one_line(path)}: {error}") from None
