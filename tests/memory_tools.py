"""What the tests of memories on disk share: small memories, and folders spoiled by hand."""

import hashlib
import json

import numpy as np

from evcap.memory import VisualNameMemory


def make(count=3, dtype=np.float16, encoder="e") -> VisualNameMemory:
    keys = np.random.default_rng(count).normal(size=(count, 4)).astype(dtype)
    memory = VisualNameMemory.empty(4, encoder, dtype)
    memory.add(keys, [f"name {i % 2}" for i in range(count)], ["s"] * count, [f"{i}.jpg" for i in range(count)])
    return memory


def same(one: VisualNameMemory, two: VisualNameMemory) -> bool:
    columns = all(getattr(one, c) == getattr(two, c) for c in ("names", "sources", "images", "encoder"))
    return columns and one.keys.dtype == two.keys.dtype and np.array_equal(one.keys, two.keys)


def part(folder, prefix):
    (path,) = folder.glob(f"{prefix}-*")
    return path


def with_manifest(folder, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replaced(folder, prefix: str, content: bytes) -> None:
    """Other content under the same name, with a manifest that vouches for it."""
    path = part(folder, prefix)
    path.write_bytes(content)
    told = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    with_manifest(folder, lambda manifest: manifest["files"].update({path.name: told}))


def flip(path, place=-1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
