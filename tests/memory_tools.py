"""What the tests of memories share: small ones, larger ones with an index, and folders spoiled by hand."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from evcap.memory.index_kind import IndexKind
from evcap.memory.manifest import MemoryFormatError
from evcap.memory.memory import VisualNameMemory

APPROXIMATE = [kind for kind in IndexKind if kind != IndexKind.flat]


def make(count=3, dtype=np.float16, encoder="e") -> VisualNameMemory:
    keys = np.random.default_rng(count).normal(size=(count, 4)).astype(dtype)
    memory = VisualNameMemory.empty(4, encoder, dtype)
    memory.add(keys, [f"name {i % 2}" for i in range(count)], ["s"] * count, [f"{i}.jpg" for i in range(count)])
    return memory


def same(one: VisualNameMemory, two: VisualNameMemory) -> bool:
    columns = all(getattr(one, c) == getattr(two, c) for c in ("names", "sources", "images", "encoder"))
    return columns and one.keys.dtype == two.keys.dtype and np.array_equal(one.keys, two.keys)


def refusal(folder, message: str) -> str:
    """The one line, naming the folder, with which a spoiled memory is refused."""
    with pytest.raises(MemoryFormatError, match=message) as error:
        VisualNameMemory.open(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


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


# -- with an index


def clustered(count=1500, dim=16, dtype=np.float16, seed=0, spread=0.3) -> VisualNameMemory:
    """Keys around 50 directions, those of one direction with one name."""
    draw = np.random.default_rng(seed)
    place = draw.integers(0, 50, count)
    keys = draw.normal(size=(50, dim))[place] + spread * draw.normal(size=(count, dim))
    names, images = [f"name {p}" for p in place], [f"{i}.jpg" for i in range(count)]
    return VisualNameMemory.build(keys.astype(dtype), names, ["s"] * count, images, "e")


def near(memory: VisualNameMemory, count: int, seed: int, spread=0.1) -> np.ndarray:
    """(count,8,D) queries, each near a key."""
    draw = np.random.default_rng(seed)
    rows = memory.keys[draw.integers(0, len(memory), (count, 8))].astype(np.float32)
    return rows + spread * draw.normal(size=rows.shape).astype(np.float32) / np.sqrt(rows.shape[2])


def exact(memory: VisualNameMemory) -> VisualNameMemory:
    """The same entries in a flat memory."""
    return VisualNameMemory(np.array(memory.keys), memory.names, memory.sources, memory.images, memory.encoder)


def exhaustive(memory: VisualNameMemory) -> VisualNameMemory:
    """The memory, whose index now looks at everything: what it finds is to be exact."""
    if memory._approximate is not None:
        everything = {name: 10**4 if name != "rerank" else 50 for name in memory._approximate.settings}
        memory._approximate = replace(memory._approximate, settings=everything)
    return memory


TIE = 1e-6  # float32 sums in another order differ by less


def agree(memory: VisualNameMemory, other: VisualNameMemory, queries: np.ndarray, **options) -> None:
    """Both find the same names with the same similarities, in the same order; those that tie may change places, and one that
    ties with the last may stand in its place."""
    for found, wanted in zip(memory.search(queries, **options), other.search(queries, **options), strict=True):
        similarities = {hit.name: hit.similarity for hit in wanted}
        expected = [hit.similarity for hit in wanted]
        np.testing.assert_allclose([hit.similarity for hit in found], expected, atol=2e-4)
        theirs = [similarities.get(hit.name, expected[-1]) for hit in found]
        np.testing.assert_allclose(theirs, expected, rtol=0, atol=TIE)


def saved(tmp_path, kind, **options) -> VisualNameMemory:
    memory = clustered(**options)
    memory.reindex(kind)
    memory.save(tmp_path)
    return VisualNameMemory.open(tmp_path, "e", verify=True)
