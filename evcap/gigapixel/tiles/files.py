"""The files of a tile index, and its manifest."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evcap.errors import EvcapError
from evcap.files import write_text

if TYPE_CHECKING:
    from evcap.raster.raster import Raster

FORMAT = "evcap tile index 1"


@contextmanager
def saying(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = f"cannot write to {folder}: {error.strerror}"
        raise EvcapError(f"{told}; what is encoded is kept, the same command goes on from there") from None


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


def discard(folder: Path) -> None:
    """Let go of an index, of which `create` then makes an empty one. Raises EvcapError for a folder that holds none, and while
    somebody writes to it; may raise OSError."""
    if not {"features.f16", "states.u8"} <= {file.name for file in folder.iterdir()}:
        raise EvcapError(f"{folder} is no tile index, and is left as it is; name another folder (--index)")
    with (folder / "states.u8").open("ab") as states:
        try:
            fcntl.flock(states, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvcapError(f"another process is writing to {folder}; wait until it is done") from None
        (folder / "manifest.json").unlink(missing_ok=True)


def check_manifest(folder: Path, told: dict, raster: Raster) -> None:
    """Raises EvcapError if the index in a folder is not what is told of it. One of an unchanged file that was made when files
    were told apart by their time of change is noted anew."""
    try:
        found = json.loads((folder / "manifest.json").read_bytes())
        if found["format"] != FORMAT:
            raise ValueError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise EvcapError(f"{folder}/manifest.json is not of an {FORMAT}; name another folder (--index)") from None
    if "bands" not in found and found.get("raster") == raster.fingerprint_by_time():
        found |= {"raster": told["raster"], "bands": told["bands"], "stretch": told["stretch"]}
        with suppress(OSError):  # it is read where nobody can write, too
            write_text(folder / "manifest.json", json.dumps(found, indent=1) + "\n")
    kinds = {
        "raster": f"another file, or {raster.path.name} has changed since",
        "bands": f"other bands ({_listed(found.get('bands'))})",
        "stretch": f"another stretch ({_listed(found.get('stretch'))})",
        "plan": f"another plan ({found.get('plan')})",
        "encoder": "another encoder",
    }
    for key, kind in kinds.items():
        if found.get(key) != told[key]:
            raise EvcapError(f"{folder} is the index of {kind}; {remedy(folder, raster)}, or name another (--index)")
    if found != {"format": FORMAT} | told | {"file": found.get("file")}:  # it may have been renamed
        raise EvcapError(f"{folder}/manifest.json is damaged; {remedy(folder, raster)}")


def _listed(values) -> str:
    return ",".join(map(str, values)) if isinstance(values, list) else "none"


def remedy(folder: Path, raster: Raster) -> str:
    """The command that makes an index again, in place of the one that is there."""
    options = ["--anew"]
    options += ["--index", str(folder)] if folder != default_folder(raster.path) else []
    options += [
        f"--{name}={','.join(f'{value:g}' for value in given)}"
        for name, given in (("bands", raster.given_bands), ("stretch", raster.given_stretch))
        if given
    ]
    return f"`{shlex.join(['evcap', 'index', str(raster.path), *options])}` makes it again"


def default_folder(file: Path) -> Path:
    """Where the index of a file is, unless somebody says otherwise: beside it; in the user's cache folder where nobody can
    write to the file's own, or to the unfinished index in it."""
    beside = file.with_name(file.name + ".evcap")
    if beside.is_dir():
        usable = os.access(beside, os.W_OK) or _is_complete(beside)
    else:
        usable = os.access(file.absolute().parent, os.W_OK)
    if usable:
        return beside
    from evcap.weights.wheels import cache_folder  # which brings torch along

    where = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:8]
    return cache_folder() / "indexes" / f"{file.name}-{where}.evcap"


def _is_complete(folder: Path) -> bool:
    try:
        return 0 not in (folder / "states.u8").read_bytes()
    except OSError:
        return False
