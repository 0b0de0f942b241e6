"""How fast a visual-name memory is: an image's search in 15 thousand and in 1 million keys, and 1,000 names more.

Search: `VisualNameMemory.search` with one image's 32 query features, against the same rule taken one query at a time:
numpy compares it with every key and picks its five nearest, then loops choose the names. Both use the same float32 keys,
already in main memory, and must name the same things.

Adding: `VisualNameMemory.add` of 1,000 names, one key each, to a memory that is open and was searched, against building the
memory and its index anew from all entries; then both again with saving to disk. Afterwards both can be searched at once.

The sides take turns, and each turn gives one ratio (the other side's seconds by ours). Opening a memory and filling its index
have no other side. Keys are random, in float16, of 384 numbers (the embedded preset) and of 768 (the paper's).

    python bench/memory.py [--small]
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from evcap.memory.index_kind import IndexKind
from evcap.memory.memory import VisualNameMemory

DIMS = (384, 768)
HITS, KEEP, LIMIT = 5, 32, 10
TURNS = 9
TURNS_OF_MANY = 3  # from this many keys on: a query at a time takes seconds
MANY = 500_000
REST = 0.1  # seconds before each run: threads of numpy's and of faiss's BLAS stay busy for a while after their work
OUTPUT = Path(__file__).parent / "results" / "memory.json"


def random_keys(count: int, dim: int, seed: int) -> np.ndarray:
    """(count,dim) float16, of unit length."""
    draw, keys = np.random.default_rng(seed), np.empty((count, dim), np.float16)
    for part in np.array_split(keys, count // 65536 + 1):  # in parts: a million in float32 would take gigabytes
        rows = draw.standard_normal(part.shape, np.float32)
        part[:] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return keys


def random_memory(count: int, dim: int) -> VisualNameMemory:
    names = [f"name {number // 10}" for number in range(count)]
    images = [f"{number}.jpg" for number in range(count)]
    memory = VisualNameMemory(random_keys(count, dim, 0), names, ["random"] * count, images, "bench")
    memory.reindex(IndexKind.flat)  # however many: bench/index.py compares the kinds
    return memory


def float_keys(memory: VisualNameMemory) -> np.ndarray:
    """(M,D) float32, those of the memory's index and not a copy."""
    import faiss

    count, dim = memory.keys.shape
    return faiss.rev_swig_ptr(memory.index.get_xb(), count * dim).reshape(count, dim)


def one_query_at_a_time(keys: np.ndarray, names: list[str], queries: np.ndarray) -> list[str]:
    hits = []
    for query in queries:
        similarities = keys @ (query / np.linalg.norm(query))
        nearest = np.argpartition(similarities, -HITS)[-HITS:]
        hits += sorted(((float(similarities[entry]), int(entry)) for entry in nearest), reverse=True)
    hits.sort(key=lambda hit: -hit[0])
    found = []
    for _, entry in hits[:KEEP]:
        if names[entry] not in found:
            found.append(names[entry])
    return found[:LIMIT]


def timed(action: Callable) -> tuple[float, object]:
    """Seconds and result."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired(ours: Callable, other: Callable, turns: int, prepare: Callable = lambda: ()) -> dict:
    """Seconds of `ours(*prepare())` and `other()` in turns; preparing is not counted. Run both once before."""
    fast, slow = [], []
    for _ in range(turns):
        prepared = prepare()
        time.sleep(REST)
        fast.append(timed(lambda p=prepared: ours(*p))[0])
        del prepared
        time.sleep(REST)
        slow.append(timed(other)[0])
    ratios = [b / a for a, b in zip(fast, slow, strict=True)]
    return {"seconds": spread(fast), "seconds_of_other": spread(slow), "ratio": spread(ratios), "turns": turns}


def measure(count: int, dim: int, folder: Path) -> dict[str, dict]:
    """Opening, filling the index, and the search of one image."""
    random_memory(count, dim).save(folder)
    turns = TURNS_OF_MANY if count >= MANY else TURNS
    size = f"{count:,} keys of {dim}"
    opened, filled = [], []
    for _ in range(turns):
        memory = None  # so that no two are in main memory at once
        seconds, memory = timed(lambda: VisualNameMemory.open(folder))
        opened.append(seconds)
        filled.append(timed(lambda memory=memory: memory.index)[0])
    queries = np.random.default_rng(1).standard_normal((1, 32, dim), np.float32)
    keys = float_keys(memory)

    def search() -> list[str]:
        return [hit.name for hit in memory.search(queries, HITS, KEEP, LIMIT)[0]]

    def search_singly() -> list[str]:
        return one_query_at_a_time(keys, memory.names, queries[0])

    if search() != search_singly():
        raise SystemExit(f"error: the two searches of {size} name different things")
    return {
        f"open, {size}": {"seconds": spread(opened), "turns": turns},
        f"fill the index, {size}": {"seconds": spread(filled), "turns": turns},
        f"search 32 queries, {size}": paired(search, search_singly, turns),
    }


def measure_adding(count: int, dim: int, folder: Path) -> dict[str, dict]:
    """Adding 1,000 names, one key each, to a memory of `count` keys in a folder."""
    random_memory(count, dim).save(folder)
    keys = random_keys(1000, dim, 2)
    texts = [f"new {number}" for number in range(1000)]

    def searched() -> tuple[VisualNameMemory]:
        memory = VisualNameMemory.open(folder)
        memory.search(np.ones((1, 1, dim)))
        return (memory,)

    def add(memory: VisualNameMemory) -> VisualNameMemory:
        memory.add(keys, texts, texts, texts)
        return memory

    old = VisualNameMemory.open(folder)
    columns = [[*column, *texts] for column in (old.names, old.sources, old.images)]
    rows = np.concatenate([old.keys, keys])

    def build() -> VisualNameMemory:
        memory = VisualNameMemory.build(rows, *columns, "bench")
        _ = memory.index
        return memory

    if add(*searched()).names != build().names:
        raise SystemExit("error: adding and building differ")
    target = folder.with_name("added")
    build().save(target)
    return {
        f"add 1,000 names to {count:,} keys of {dim}": paired(add, build, TURNS, searched),
        f"add 1,000 names to {count:,} keys of {dim} and save": paired(
            lambda memory: add(memory).save(target), lambda: build().save(target), TURNS, searched
        ),
    }


def main(
    small: Annotated[bool, typer.Option("--small", help="1,500 and 10,000 keys: a quick check, not written.")] = False,
    many: Annotated[int, typer.Option(help="Keys of the large memory; a million need some 6 GB.")] = 10**6,
    output: Annotated[Path, typer.Option(help="JSON file of the figures.")] = OUTPUT,
) -> None:
    import faiss

    few, many = (1500, 10_000) if small else (15_000, many)
    rows, console, start = {}, Console(), time.perf_counter()
    with tempfile.TemporaryDirectory() as place, console.status("") as status:
        for dim in DIMS:
            for count in (few, many):
                status.update(f"{count:,} keys of {dim}")
                rows |= measure(count, dim, Path(place) / "searched")
            rows |= measure_adding(few, dim, Path(place) / "grown")
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "faiss-cpu")}
    machine = {"cores": len(os.sched_getaffinity(0)), "faiss_threads": faiss.omp_get_max_threads(), "versions": versions}
    table = Table("memory", "seconds, median", "lowest to highest", "other side", "ratio, median", "lowest to highest")
    for name, row in rows.items():
        cells = [name, f"{row['seconds']['median']:.4f}", f"{row['seconds']['min']:.4f} to {row['seconds']['max']:.4f}"]
        if "ratio" in row:
            other, ratio = row["seconds_of_other"], row["ratio"]
            cells += [f"{other['median']:.4f}", f"{ratio['median']:.1f}", f"{ratio['min']:.1f} to {ratio['max']:.1f}"]
        table.add_row(*cells)
    console.print(table)
    console.print(f"{machine['cores']} cores, {machine['faiss_threads']} threads; took {time.perf_counter() - start:.0f} s")
    if not small:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"machine": machine, "figures": rows}, indent=1) + "\n")
        console.print(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
