"""Kinds of index at a million keys: building, file, opening, searching, main memory, and what is found of what flat finds.

The keys: a million random ones of 768 numbers, and real ones: the shipped memory's and those of the photos of Flickr8k,
UC Merced and COCO in DIR (not the test photos). The shipped model's are 384 wide, so all real vectors are turned by one
random matrix with 384 orthonormal rows (seed 7), which leaves every similarity among them as it is.

The queries: `real`, query features of Flickr8k test photos, as captioning has them; `copies`, random keys with noise, at a
cosine of 0.8 and at the median cosine of real queries with their nearest key; `random`, independent of all keys, whose nearest
key is no nearer than chance. Random vectors of 768 numbers have no clusters: that is the worst case for every index.

Recall@1 is the share of queries whose best hit is as similar as flat's best hit (equal keys count as one). Each kind is built
in one process and searched in another, both new; main memory is split into what the process holds and mapped file pages,
which the system takes back when it needs them. Files are in the page cache when they are opened.

    python bench/index.py --data DIR [--small]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from evcap.cli.console import command
from evcap.cli.options import DataFolder
from evcap.memory.index_kind import IndexKind
from evcap.memory.memory import VisualNameMemory

WIDTH = 768
TRIED = {  # settings beside the shipped ones
    IndexKind.flat: [],
    IndexKind.ivf: [{"nprobe": n} for n in (16, 32, 64, 1024)],
    IndexKind.hnsw: [{"efSearch": n} for n in (256, 512, 1024)],
    IndexKind.ivf_pq: [{"nprobe": n, "rerank": r} for n, r in ((32, 20), (64, 20), (160, 4))],
}
FEW = 320  # queries of each set for a setting that is tried
TURNS = 5
OUTPUT = Path(__file__).parent / "results" / "index.json"


def real_vectors(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys (R,384) and query features (100,32,384) of real photos by the shipped model, float32."""
    import torch

    from evcap.captioner import Captioner
    from evcap.datasets.coco import read_coco_captions
    from evcap.memory.keys import mean_keys
    from evcap.training.features import cached_queries

    captioner = Captioner.load()

    def features(sets: list[str]) -> np.ndarray:
        files = [(data / name / f"captions_{split}.json", data / name / "images") for name, split in map(str.split, sets)]
        records = [record for file in files for record in read_coco_captions(*file)]
        return cached_queries(captioner.model, [r.path for r in records], data, captioner.encoder_fingerprint)

    photos = features([f"{name} {split}" for name in ("flickr8k", "ucm", "coco") for split in ("train", "val")])
    keys = mean_keys(torch.from_numpy(photos[:])).numpy()
    return np.concatenate([captioner.memory.keys, keys]).astype(np.float32), features(["flickr8k test"])[:100].astype(
        np.float32
    )


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def make_memory(random: int, real: np.ndarray) -> VisualNameMemory:
    """A flat memory of random keys and behind them the real ones (R,768)."""
    draw, count = np.random.default_rng(0), random + len(real)
    keys = np.empty((count, WIDTH), np.float16)
    for part in np.array_split(keys[:random], random // 65536 + 1):
        part[:] = unit(draw.standard_normal(part.shape, np.float32))
    keys[random:] = real
    names, images = [f"name {number // 10}" for number in range(count)], [f"{number}.jpg" for number in range(count)]
    memory = VisualNameMemory(keys, names, ["bench"] * count, images, "bench")
    memory.reindex(IndexKind.flat)
    return memory


def make_queries(memory: VisualNameMemory, random: int, features: np.ndarray) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    nearest = (features @ memory.keys[random:].astype(np.float32).T).max(1)
    queries = {"real": features}
    for cosine in (0.8, float(np.median(nearest))):
        keys = memory.keys[draw.choice(random, 1000, replace=False)].astype(np.float32)
        noise = unit(draw.standard_normal(keys.shape, np.float32))
        queries[f"copies, cosine {cosine:.2f}"] = unit(cosine * keys + (1 - cosine**2) ** 0.5 * noise)
    return queries | {"random": unit(draw.standard_normal((1000, WIDTH), np.float32))}


class MainMemory:
    """The most that this process held while the `with` lasted, in MB, looked at 20 times a second."""

    def __enter__(self) -> MainMemory:
        self.own = self.mapped = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.look()

    def look(self) -> None:
        own, mapped = (
            int(kb) // 1000 for kb in re.findall(r"Rss(?:Anon|File):\s+(\d+)", Path("/proc/self/status").read_text())
        )
        self.own, self.mapped = max(self.own, own), max(self.mapped, mapped)

    def __exit__(self, *error) -> None:
        self._over.set()
        self._thread.join()
        self.look()


def timed(action: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def build(kind: IndexKind, source: Path, folder: Path) -> dict:
    with MainMemory() as ram:
        memory = VisualNameMemory.open(source)
        seconds, _ = timed(lambda: memory.reindex(kind))
    saving, _ = timed(lambda: memory.save(folder))
    file = sum(path.stat().st_size for path in folder.glob("index-*"))
    return {
        "build_seconds": seconds,
        "save_seconds": saving,
        "index_file_mb": file / 1e6,
        "keys_file_mb": sum(path.stat().st_size for path in folder.glob("keys-*")) / 1e6,
        "build_ram_mb": {"own": ram.own, "mapped": ram.mapped},
    }


def search(folder: Path, queries: dict[str, np.ndarray], best: dict[str, np.ndarray] | None) -> tuple[dict, dict]:
    """Figures of a search, and each query's best similarity."""
    seconds = [timed(lambda: VisualNameMemory.open(folder))[0] for _ in range(TURNS)]
    with MainMemory() as ram:
        memory = VisualNameMemory.open(folder)
        first, _ = timed(lambda: memory.nearest(queries["real"][:32], 5))
    found = {name: memory.nearest(rows, 5)[0][:, 0] for name, rows in queries.items()}
    best = best or found

    def recall(count: int) -> dict[str, float]:
        similarities = {name: memory.nearest(rows[:count], 5)[0][:, 0] for name, rows in queries.items()}
        return {name: float((values >= best[name][:count] - 1e-4).mean()) for name, values in similarities.items()}

    def seconds_for(count: int) -> float:
        return statistics.median(timed(lambda: memory.nearest(queries["real"][:count], 5))[0] for _ in range(TURNS))

    few, many = seconds_for(32), seconds_for(3200)
    figures = {
        "open_seconds": statistics.median(seconds),
        "first_search_seconds": first,
        "open_and_search_ram_mb": {"own": ram.own, "mapped": ram.mapped},
        "seconds_32": few,
        "seconds_3200": many,
        "recall": {name: float((values >= best[name] - 1e-4).mean()) for name, values in found.items()},
        "tried": [],
    }
    shipped = memory._approximate
    for settings in TRIED[memory.kind]:
        memory._approximate = replace(shipped, settings=settings)
        figures["tried"].append({"settings": settings, "recall": recall(FEW), "seconds_32": seconds_for(32)})
    return figures | {"settings": shipped.settings if shipped else {}}, found


def alone(function: Callable, *arguments):
    """The result of a function that runs in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(function, arguments)
        pool.close()  # else it is ended by a signal, and complains
        pool.join()
    return result


def show(figures: dict, console: Console) -> None:
    columns = "index", "build", "file", "RAM while building", "open", "RAM after a search", "32 queries", "3,200", "recall@1"
    table = Table(*columns)
    for kind, row in figures.items():
        recalls = ", ".join(f"{name} {value:.3f}" for name, value in row["recall"].items())
        ram = [f"{row[key]['own']:,} + {row[key]['mapped']:,} MB" for key in ("build_ram_mb", "open_and_search_ram_mb")]
        cells = [
            f"{row['build_seconds']:.0f} s",
            f"{row['index_file_mb']:,.0f} MB",
            ram[0],
            f"{row['open_seconds']:.2f} s",
            ram[1],
        ]
        table.add_row(kind, *cells, f"{row['seconds_32']:.3f} s", f"{row['seconds_3200']:.2f} s", recalls)
    console.print(table)


@command
def main(
    data: DataFolder,
    small: Annotated[bool, typer.Option("--small", help="5,000 keys: a quick check, not written.")] = False,
    kind: Annotated[list[IndexKind] | None, typer.Option(help="Only these kinds; the file keeps the others.")] = None,
    output: Annotated[Path, typer.Option(help="JSON file of the figures.")] = OUTPUT,
) -> None:
    import faiss

    random, console = 4000 if small else 10**6, Console()
    real, features = real_vectors(data)
    if small:
        real, features = real[:1000], features[:10]
    turn = np.linalg.qr(np.random.default_rng(7).standard_normal((WIDTH, real.shape[1])))[0].T.astype(np.float32)
    real, features = unit(real @ turn), unit(features.reshape(-1, real.shape[1]) @ turn)
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "faiss-cpu")}
    report = {
        "machine": {"cores": len(os.sched_getaffinity(0)), "faiss_threads": faiss.omp_get_max_threads(), "versions": versions},
        "keys": {"random": random, "real": len(real), "width": WIDTH, "dtype": "float16"},
        "figures": json.loads(output.read_text())["figures"] if kind and not small and output.exists() else {},
    }
    with tempfile.TemporaryDirectory() as place:
        flat = Path(place) / "flat"
        memory = make_memory(random, real)
        queries = make_queries(memory, random, features)
        memory.save(flat)
        del memory
        best = None
        for each in [IndexKind.flat, *(kind or [k for k in IndexKind if k != IndexKind.flat])]:
            console.print(f"{each} ...")
            folder = flat if each == IndexKind.flat else Path(place) / each
            built = alone(build, each, flat, Path(place) / "again" if folder == flat else folder)
            searched, found = alone(search, folder, queries, best)
            best = best or found
            report["figures"][each] = built | searched
            if not small:
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps(report, indent=1) + "\n")
    show(report["figures"], console)


if __name__ == "__main__":
    typer.run(main)
