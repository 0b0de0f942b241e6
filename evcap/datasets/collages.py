"""Collages: several photos at random sizes on one canvas, with their regions moved along.

On a canvas the whole says little of a region, and a small photo shows its detail in a tight view alone: so a model learns when
to look where.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from evcap.datasets.phrases import Region, within

CELL = 224  # pixels a side of the place of each photo
SCALES = (0.4, 1.0)  # of a photo in its place
GREY = (124, 124, 124)


@dataclass(frozen=True)
class Collage:
    """size: (width, height) of the canvas. parts: each photo, and the whole pixels x1,y1,x2,y2 that it covers."""

    size: tuple[int, int]
    parts: tuple[tuple[Path, tuple[int, int, int, int]], ...]

    def image(self, opened) -> Image.Image:
        """The canvas. opened: path -> RGB image."""
        canvas = Image.new("RGB", self.size, GREY)
        for path, (x1, y1, x2, y2) in self.parts:
            canvas.paste(opened(path).resize((x2 - x1, y2 - y1), Image.Resampling.BICUBIC), (x1, y1))
        return canvas


def collage(photos: Sequence[Sequence[Region]], draw: random.Random) -> tuple[Collage, list[Region]]:
    """A canvas with the photos of these regions, those of each photo together, and the regions as they lie on it.

    Photos stand in a grid of places; each keeps its proportions. Regions that become smaller than a pixel are left out.
    """
    columns = 2 if len(photos) <= 4 else 3
    rows = -(-len(photos) // columns)
    parts, moved = [], []
    for place, regions in enumerate(photos):
        width, height = regions[0].size
        scale = draw.uniform(*SCALES) * CELL / max(width, height)
        across, down = max(1, round(width * scale)), max(1, round(height * scale))
        left = place % columns * CELL + draw.randint(0, CELL - across)
        top = place // columns * CELL + draw.randint(0, CELL - down)
        parts.append((regions[0].path, (left, top, left + across, top + down)))
        for region in regions:
            x1, y1, x2, y2 = region.box
            fx, fy = across / width, down / height
            box = within((left + x1 * fx, top + y1 * fy, left + x2 * fx, top + y2 * fy), (columns * CELL, rows * CELL))
            moved += [replace(region, box=box)] if box else []
    canvas = Collage((columns * CELL, rows * CELL), tuple(parts))
    return canvas, [replace(region, size=canvas.size, real_size=canvas.size) for region in moved]
