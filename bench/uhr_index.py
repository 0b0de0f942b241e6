"""Indexing large images: the reader of tiles against plain windowed reads, and indexing against the encoder alone.

    python bench/uhr_index.py SCENE.tif
    python bench/uhr_index.py SCENE.tif --whole SMALL.tif --whole LARGE.tif

Both comparisons take turns on the same tiles of SCENE, a tiled file with overviews (data/make_mosaic.py makes some). Plain
reads: rasterio alone, one handle, a window a tile, row by row, each tile at its level's resolution, under the same limit for
GDAL's cache, which holds more than a row of tiles. The encoder alone gets the same images, in main memory already.
Each file named by --whole is indexed by `evcap index`, asked each question alone and all of them in one command, and the first
once more without its index, coarse to fine; each in a process of its own: seconds with the start of the program, tiles, and
most main memory (of Linux).
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated

import numpy as np
import rasterio
import typer
from PIL import Image
from rasterio.enums import Resampling
from rasterio.windows import Window
from rich.console import Console
from rich.table import Table

from evcap.cli.console import command
from evcap.encoding.keys import Encoder
from evcap.evaluation.figures import spread, write_figures
from evcap.gigapixel.search.towers import Tower, open_tower
from evcap.gigapixel.tiles.index import BATCH, TileIndex
from evcap.gigapixel.tiles.plans import Plan, make_plan
from evcap.gigapixel.tiles.reading import read_ahead, squares
from evcap.raster.raster import Raster

LOOK = 0.02  # seconds between two looks at a process
QUESTIONS = [
    "Is there an airplane?",
    "How many places with storage tanks are there?",
    "Is there a harbor?",
    "Where is the golf course?",
    "What is near the beach?",
]
OUTPUT = Path(__file__).parent / "results" / "uhr_index.json"


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def read_plainly(raster: Raster, plan: Plan) -> None:
    """Each tile by a windowed read."""
    bands, boxes, levels = list(raster.bands), plan.boxes().tolist(), plan.level_of()
    with rasterio.open(raster.path) as file:
        for (x1, y1, x2, y2), depth in zip(boxes, levels, strict=True):
            scale = max(1.0, plan.levels[depth].scale)
            shape = len(bands), round((y2 - y1) / scale), round((x2 - x1) / scale)
            how = Resampling.average if scale > 1 else Resampling.nearest
            file.read(bands, window=Window(x1, y1, x2 - x1, y2 - y1), out_shape=shape, resampling=how)


def read_all(raster: Raster, plan: Plan, numbers: np.ndarray, side: int) -> list[np.ndarray]:
    """The images of tiles as the index reads them, in the order of reading."""
    with closing(read_ahead(raster, plan, squares(plan, numbers, raster), side)) as reading:
        return [pixels for tiles in reading for pixels in tiles.pixels]


def count_read(raster: Raster, plan: Plan, side: int) -> None:
    with closing(read_ahead(raster, plan, squares(plan, np.arange(len(plan)), raster), side)) as reading:
        found = sum(len(tiles.numbers) + len(tiles.empty) for tiles in reading)
    assert found == len(plan)


def compare_reading(raster: Raster, plan: Plan, side: int, turns: int) -> tuple[list[float], list[float]]:
    """Tiles per second of the reader and of plain reads; the first turn warms up."""
    ours, plain = [], []
    for turn in range(turns + 1):
        pair = [lambda: count_read(raster, plan, side), lambda: read_plainly(raster, plan)]
        seconds = [timed(action) for action in (pair if turn % 2 else pair[::-1])]
        if turn:
            for rates, second in zip((ours, plain) if turn % 2 else (plain, ours), seconds, strict=True):
                rates.append(len(plan) / second)
    return ours, plain


def compare_indexing(raster: Raster, plan: Plan, tower: Tower, tiles: int, turns: int) -> tuple[list[float], list[float]]:
    """Tiles per second of indexing and of the encoder alone; each turn takes other tiles, the first warms up."""
    order = np.concatenate(list(squares(plan, np.arange(len(plan)), raster)))
    whole, alone = [], []
    for turn in range(turns + 1):
        numbers = order[len(order) - (turn + 1) * tiles : len(order) - turn * tiles]
        pictures = [Image.fromarray(pixels) for pixels in read_all(raster, plan, numbers, tower.image_size)]
        with tempfile.TemporaryDirectory() as folder:
            index = TileIndex.open(folder, raster, plan, tower.encoder_fingerprint, tower.shape)

            def encode(pictures=pictures) -> None:
                for start in range(0, len(pictures), BATCH):
                    tower.query_features(pictures[start : start + BATCH], BATCH)

            pair = [(whole, lambda index=index, numbers=numbers: index.fill(tower, numbers)), (alone, encode)]
            for rates, action in pair if turn % 2 else pair[::-1]:
                seconds = timed(action)
                if turn:
                    rates.append(len(numbers) / seconds)
            assert (index.states[numbers] == 1).all()
    return whole, alone


def run_alone(*arguments: str) -> tuple[str, str, dict[str, float]]:
    """`evcap` in a process of its own: what it printed, what it told on standard error, seconds and most main memory."""
    ordered = [sys.executable, "-m", "evcap.cli.app", *arguments]
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as told:
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen(ordered, stdout=printed, stderr=told)
        while process.poll() is None:
            peak = max(peak, most_memory(process.pid))
            time.sleep(LOOK)
        seconds = time.perf_counter() - start
        for file in (printed, told):
            file.seek(0)
        texts = printed.read(), told.read()
    if process.returncode:
        raise SystemExit(texts[1])
    return *texts, {"seconds": seconds, "peak_memory_mb": peak / 1000}


def most_memory(process: int) -> int:
    """kB that a process held at most so far; 0 when it is gone. What the kernel tells of an ended child (ru_maxrss) begins
    with its parent's peak, of which a fork is a copy."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(found[1]) if (found := re.search(r"VmHWM:\s*(\d+) kB", status)) else 0


def index_whole(path: Path, questions: list[str]) -> dict:
    """What `evcap index` of a file takes, the questions after it, each alone and all together, and one without an index."""
    with tempfile.TemporaryDirectory() as folder:
        _, told, figures = run_alone("index", str(path), "--index", f"{folder}/index")
        disk = sum(file.stat().st_blocks * 512 for file in Path(folder, "index").iterdir())
        figures["questions"] = [answered(path, [question], f"{folder}/index") for question in questions]
        figures["together"] = answered(path, questions, f"{folder}/index")
        figures["coarse_to_fine"] = answered(path, questions[:1], f"{folder}/fresh")
    counts = re.search(r"([\d,]+) tiles .*?([\d,]+) empty, of ([\d,]+)", told).groups()
    encoded, empty, tiles = (int(count.replace(",", "")) for count in counts)
    with Raster(path) as raster:
        size = [raster.width, raster.height]
    return {"size": size, "tiles": tiles, "encoded": encoded, "empty": empty, "index_on_disk_mb": disk / 1e6} | figures


def answered(path: Path, questions: list[str], index: str) -> dict:
    """What one `evcap ask --json` takes as a whole, each answer as it says itself (the first loads the model), and how many
    tiles were encoded for it or before, of how many."""
    printed, _, figures = run_alone("ask", str(path), *questions, "--json", "--index", index)
    replies = [json.loads(line) for line in printed.splitlines()]
    told = {key: [reply[key] for reply in replies] for key in ("question", "answer", "seconds")}
    return {"answers": told} | replies[-1]["tiles"] | figures


def main(
    scene: Annotated[Path, typer.Argument(help="A tiled raster with overviews.")],
    tiles: Annotated[int, typer.Option(min=BATCH, help="Tiles of a turn of indexing.")] = 160,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each comparison.")] = 7,
    whole: Annotated[list[Path] | None, typer.Option(help="Rasters that are indexed as a whole.")] = None,
    question: Annotated[list[str], typer.Option(help="What they are asked.")] = QUESTIONS,
    output: Annotated[Path, typer.Option(help="JSON file of the figures.")] = OUTPUT,
) -> None:
    tower, console = open_tower(Encoder("embedded").captioner), Console()
    table = Table("tiles per second", "median", "lowest to highest")
    figures = {"preset": "embedded", "batch": BATCH}
    with Raster(scene) as raster:
        plan = make_plan("pyramid", raster.width, raster.height, side=tower.image_size)
        figures |= {"size": [raster.width, raster.height], "plan": plan.name, "tiles": len(plan), "block": list(raster.block)}
        names = ("reader", "plain_reads"), ("indexing", "encoder_alone")
        pairs = (
            compare_reading(raster, plan, tower.image_size, turns),
            compare_indexing(raster, plan, tower, tiles // BATCH * BATCH, turns),
        )
    for (one, other), (ours, theirs) in zip(names, pairs, strict=True):
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        figures |= {f"tiles_a_second_{one}": ours, f"tiles_a_second_{other}": theirs}
        figures |= {f"{one}_to_{other}": ratios, f"{one}_to_{other}_median": statistics.median(ratios)}
        for label, values in ((one, ours), (other, theirs), ("ratio", ratios)):
            table.add_row(label.replace("_", " "), *spread(values))
    console.print(table)
    figures["whole"] = {}
    for path in whole or []:
        figures["whole"][path.stem] = index_whole(path, question)
        console.print(path, figures["whole"][path.stem])
    write_figures(output, figures)
    console.print(f"wrote {output}")


if __name__ == "__main__":
    typer.run(command(main))
