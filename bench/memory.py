"""How fast a visual-name memory is: searches, opening, and adding 1,000 names.

    python bench/memory.py [--small]

Keys are random, in float16, of 384 numbers (the embedded preset) and of 768 (the paper's); searches compare with every key.
Each figure is the median of five repeats.
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

from evcap.memory import VisualNameMemory

DIMS = (384, 768)
REPEATS = 5
BATCHED = 100_000  # keys; comparing 3,200 queries with more of them takes minutes
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
    return VisualNameMemory(random_keys(count, dim, 0), names, ["random"] * count, images, "bench")


def timed(action: Callable, prepare: Callable = lambda: None) -> dict[str, float]:
    """Seconds of `action(prepare())` over the repeats; preparing is not counted."""
    seconds = []
    for _ in range(REPEATS):
        prepared = prepare()
        start = time.perf_counter()
        action(prepared)
        seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def measure(count: int, dim: int, folder: Path) -> dict[str, dict[str, float]]:
    """Searches and opening of a memory of `count` keys. The first search, which fills the index, is counted apart."""
    random_memory(count, dim).save(folder)
    size = f"{count:,} keys of {dim}"
    queries = np.random.default_rng(1).standard_normal((100, 32, dim), np.float32)
    memory = VisualNameMemory.open(folder)
    rows = {
        f"open, {size}": timed(lambda _: VisualNameMemory.open(folder)),
        f"open and search for the first time, 32 queries, {size}": timed(
            lambda _: VisualNameMemory.open(folder).search(queries[:1])
        ),
    }
    memory.search(queries[:1])
    rows[f"search 32 queries, top 5, {size}"] = timed(lambda _: memory.search(queries[:1]))
    if count <= BATCHED:
        rows[f"search 3,200 queries, top 5, {size}"] = timed(lambda _: memory.search(queries))
    return rows


def measure_adding(count: int, dim: int, folder: Path) -> dict[str, dict[str, float]]:
    """Adding 1,000 names, one key each, to a memory of `count` keys in a folder."""
    random_memory(count, dim).save(folder)
    keys = random_keys(1000, dim, 2)
    texts = [f"new {number}" for number in range(1000)]

    def add(memory: VisualNameMemory) -> VisualNameMemory:
        memory.add(keys, texts, texts, texts)
        return memory

    def searched() -> VisualNameMemory:
        memory = VisualNameMemory.open(folder)
        memory.search(np.ones((1, 1, dim)))
        return memory

    target = folder.with_name("added")
    return {
        f"add 1,000 names to {count:,} keys of {dim}, searchable at once": timed(add, searched),
        f"add 1,000 names to {count:,} keys of {dim} and save": timed(lambda memory: add(memory).save(target), searched),
    }


def main(
    small: Annotated[bool, typer.Option("--small", help="1,500 and 10,000 keys: a quick check, not written.")] = False,
    output: Annotated[Path, typer.Option(help="JSON file of the results.")] = OUTPUT,
) -> None:
    import faiss

    sizes = (1500, 10_000) if small else (15_000, 1_000_000)
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        for dim in DIMS:
            for count in sizes:
                rows |= measure(count, dim, Path(place) / f"m{count}")
            rows |= measure_adding(sizes[0], dim, Path(place) / "grown")
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "faiss-cpu")}
    machine = {"cores": len(os.sched_getaffinity(0)), "faiss threads": faiss.omp_get_max_threads(), "versions": versions}
    table = Table("seconds", "median", "min", "max", title=f"{machine['cores']} cores, {machine['faiss threads']} threads")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.4f}" for column in ("median", "min", "max")))
    Console().print(table)
    if not small:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"machine": machine, "repeats": REPEATS, "seconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
