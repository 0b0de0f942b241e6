"""The files of a tile index: its manifest, and rows that are read and written where they stand."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from evcap.errors import EvcapError
from evcap.files import write_text

FORMAT = "evcap tile index 1"


@contextmanager
def saying(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = f"cannot write to {folder}: {error.strerror}"
        raise EvcapError(f"{told}; what is encoded is kept, the same command goes on from there") from None


def runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive numbers, as far as they go, in their order."""
    borders = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    return ((start, stop) for start, stop in zip(borders, borders[1:], strict=False) if stop > start)


def read_rows(file: int, rows: np.ndarray, offset: int) -> None:
    left = memoryview(rows).cast("B")
    while left:
        count = os.preadv(file, [left], offset)
        if not count:
            raise OSError(0, "the file was cut short")
        left, offset = left[count:], offset + count


def write_rows(file: int, rows: np.ndarray, offset: int) -> None:
    """All of it: where a disk gets full, the first part is written without an error."""
    left = memoryview(rows).cast("B")
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def stored_plan(folder: str | Path) -> str | None:
    """Name of the plan of the index in a folder, None if there is none."""
    try:
        name = json.loads((Path(folder) / "manifest.json").read_bytes())["plan"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def create(folder: Path, told: dict) -> None:
    """An empty index. The manifest comes last: without it there is no index yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "states.u8").open("ab") as states, (folder / "features.f16").open("ab") as features:
        fcntl.flock(states, fcntl.LOCK_EX)
        if (folder / "manifest.json").exists():  # somebody else was as quick
            return
        for file in (features, states):
            file.truncate(0)  # whatever is there, nobody knows of which file it is
        features.truncate(told["tiles"] * 2 * int(np.prod(told["shape"])))
        states.write(bytes(told["tiles"]))  # no hole: a full disk shall not keep anybody from marking what is encoded
        states.flush()
        write_text(folder / "manifest.json", json.dumps({"format": FORMAT} | told, indent=1) + "\n")


def check_manifest(folder: Path, told: dict, path: Path) -> None:
    try:
        found = json.loads((folder / "manifest.json").read_bytes())
        if found["format"] != FORMAT:
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise EvcapError(f"{folder}/manifest.json is not of an {FORMAT}; name another folder (--index)") from None
    kinds = {"raster": f"file, or {path.name} has changed since", "plan": f"plan ({found.get('plan')})", "encoder": "encoder"}
    for key, kind in kinds.items():
        if found.get(key) != told[key]:
            raise EvcapError(f"{folder} is the index of another {kind}; {remedy(folder)}, or name another folder (--index)")
    if found != {"format": FORMAT} | told | {"file": found.get("file")}:  # it may have been renamed
        raise EvcapError(f"{folder}/manifest.json is damaged; {remedy(folder)}")


def remedy(folder: Path) -> str:
    return f"delete {folder} and run `evcap index` again"
