"""The manifest of a memory on disk: what it tells, and how that is checked. The files are those of evcap.memory.storage."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evcap.errors import EvcapError
from evcap.memory.index import ApproximateIndex
from evcap.memory.index_kind import SETTINGS, IndexKind
from evcap.text_files import brief

FORMATS = (1, 2)  # 2 has an index file
MARK = "-[0-9a-f]{8}"
OWN_FILE = re.compile(rf"keys{MARK}\.safetensors|names{MARK}\.json|index{MARK}\.faiss|manifest{MARK}\.tmp")
COLUMNS = ("names", "sources", "images")


class MemoryFormatError(EvcapError):
    """A folder that is no memory, is damaged, or belongs to another encoder."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What a memory's folder holds. Read from disk, keys and index are mapped.

    keys (M,D); columns: names, sources, images; chosen: somebody chose the kind of index; manifest: its text, once on disk.
    """

    keys: np.ndarray
    columns: dict[str, list[str]]
    encoder: str
    index: ApproximateIndex | None = None
    chosen: bool = False
    manifest: str = ""


def manifest_of(contents: Contents, files: dict[str, dict]) -> dict:
    """The manifest of contents whose files are `files`: name -> {"sha256", "bytes"}."""
    index = contents.index
    told = {
        "format": FORMATS[index is not None],  # older programs refuse an index in one line, and still read a flat memory
        "encoder": contents.encoder,
        "entries": len(contents.keys),
        "names": len(set(contents.columns["names"])),
        "dim": int(contents.keys.shape[1]),
        "dtype": str(contents.keys.dtype),
        "index": IndexKind.flat if index is None else index.kind,
    }
    told |= {"search": index.settings, "indexed": index.faiss.ntotal} if index is not None else {}
    told |= {"chosen": True} if contents.chosen else {}
    return told | {"files": files}


def _is_mark(encoder) -> bool:
    """A short hash, which messages print."""
    return isinstance(encoder, str) and len(encoder) < 100 and encoder.isprintable()


def _is_sum(told) -> bool:
    return type(told["bytes"]) is int and isinstance(told["sha256"], str)


def parse_manifest(folder: Path, text: str) -> tuple[dict, dict[str, Path]]:
    """The checked manifest, and the paths of "keys", "names" and, where there is one, "index"."""
    try:
        manifest = json.loads(text)
        if manifest["format"] not in FORMATS:
            read = " and ".join(map(str, FORMATS))
            raise MemoryFormatError(f"{folder} has format {brief(manifest['format'])}, this evcap reads {read}: update evcap")
        kind, indexed = IndexKind(manifest["index"]), manifest["format"] == FORMATS[1]
        told = _is_mark(manifest["encoder"]) and isinstance(manifest.setdefault("chosen", False), bool)
        if not told or (kind != IndexKind.flat) != indexed:
            raise ValueError
        names = [n for n, told in manifest["files"].items() if OWN_FILE.fullmatch(n) and _is_sum(told)]
        parts = ["keys", "names", *(["index"] if indexed else [])]
        files = {part: folder / next(n for n in names if n.startswith(f"{part}-")) for part in parts}
        numbers = [manifest["entries"], manifest["dim"], *([manifest["indexed"]] if indexed else [])]
        settings = manifest["search"] if indexed else {}
        known = settings.keys() == SETTINGS[kind].keys() and all(type(v) is int and 0 < v < 2**31 for v in settings.values())
        if not (
            known and all(type(n) is int and 0 <= n < 2**53 for n in numbers) and manifest["dtype"] in ("float16", "float32")
        ):
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        raise MemoryFormatError(f"{folder}/manifest.json is damaged; restore the folder") from None
    return manifest, files
