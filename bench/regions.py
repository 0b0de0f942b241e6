"""Regions a second of one photo: many at once, against one at a time through the same code.

Both sides look at the same boxes of the same photo and say the same kinds of things: caption, names, tags, class. The photo is
open already. Sides take turns, and each repeat gives one ratio for each number of regions.

    python bench/regions.py --image PHOTO
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

import evcap
from evcap.errors import EvcapError
from evcap.evaluation.figures import spread, write_figures
from evcap.images.opening import open_image
from evcap.regions.describe import RegionDescriber

RESULTS = Path(__file__).parent / "results" / "regions.json"
COUNTS = (1, 8, 32)


def drawn_boxes(count: int, image: Image.Image, seed: int) -> list[tuple[float, ...]]:
    """Boxes of a tenth to two thirds of the image's sides, anywhere in it."""
    draw = np.random.default_rng(seed)
    sides = draw.uniform(0.1, 0.67, (count, 2)) * image.size
    corners = draw.uniform(0, 1, (count, 2)) * (np.array(image.size) - sides)
    return [tuple(row) for row in np.concatenate([corners, corners + sides], axis=1).round(1).tolist()]


def rate(describer: RegionDescriber, image: Image.Image, parts: list[list[tuple[float, ...]]]) -> float:
    """Regions a second when each part is asked about at once."""
    start = time.perf_counter()
    for boxes in parts:
        describer.describe(image, boxes)
    return sum(map(len, parts)) / (time.perf_counter() - start)


def main(
    image: Annotated[Path, typer.Option(help="The photo.")],
    preset: Annotated[str, typer.Option(help="Shipped preset or YAML file.")] = "embedded",
    repeats: Annotated[int, typer.Option(help="Pairs of runs.")] = 5,
    output: Annotated[Path, typer.Option(help="JSON file of the figures.")] = RESULTS,
) -> None:
    describer = evcap.load(preset).region_describer
    photo = open_image(image)
    describer.describe(photo, drawn_boxes(2, photo, 0))  # warm up
    figures = {"image": photo.size, "views": describer.config.views}
    table = Table("regions of a photo", "at once, regions/s", "one at a time", "ratio, median", "lowest to highest")
    for count in COUNTS:
        boxes = drawn_boxes(count, photo, count)
        together, single = [], []
        for _ in range(repeats):
            together.append(rate(describer, photo, [boxes]))
            single.append(rate(describer, photo, [[box] for box in boxes]))
        ratios = [a / b for a, b in zip(together, single, strict=True)]
        figures[str(count)] = {"at_once": together, "one_at_a_time": single, "ratios": ratios}
        table.add_row(str(count), *(f"{statistics.median(rates):.2f}" for rates in (together, single)), *spread(ratios))
    write_figures(output, figures)
    Console().print(table)
    print(f"wrote {output}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except EvcapError as error:
        raise SystemExit(f"error: {error}") from None
