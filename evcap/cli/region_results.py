"""What became of the regions of one image, as lines of text, JSONL or CSV, which are written together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from evcap.cli.results import TableFormat, csv_line, named, told_id


@dataclass(frozen=True)
class RegionResult:
    """What became of one region. id: None where it has none. box: (x1,y1,x2,y2) as it was asked for, None if it was no box.

    names: (name, cosine similarity), best first. class_name: "" for none. views: t of each. error: one line or None.
    """

    id: int | str | None
    box: Sequence[float] | None
    captions: list[str] = field(default_factory=list)
    names: list[tuple[str, float]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    class_name: str = ""
    views: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def corners(self) -> list[float] | None:
        """The box as it is written: whole numbers without a point, None for what JSON has no number for."""
        if self.box is None or not all(map(math.isfinite, self.box)):
            return None
        return [int(v) if float(v).is_integer() else round(float(v), 4) for v in self.box]

    @property
    def caption(self) -> str | None:
        """The best caption."""
        return self.captions[0] if self.captions else None


@dataclass(frozen=True)
class RegionResults:
    """All regions of one image; file: "" where a box does not say of which image it is."""

    file: str
    regions: list[RegionResult]

    FIELDS: ClassVar = ("file", "id", "box", "caption", "captions", "names", "tags", "class", "views", "error")
    COLUMNS: ClassVar = ("file", "id", "x1", "y1", "x2", "y2", *FIELDS[3:])

    def line(self, form: str) -> str:
        """The lines in one of the formats, each with its line end."""
        if form == TableFormat.jsonl:
            return "".join(
                json.dumps(dict(zip(self.FIELDS, self._values(region), strict=True))) + "\n" for region in self.regions
            )
        if form == TableFormat.csv:
            return "".join(csv_line(self._cells(region)) for region in self.regions)
        return "".join([f"{self.file or '(of no image)'}\n", *map(_told, self.regions)])

    def _values(self, r: RegionResult) -> tuple:
        views = [round(float(t), 2) for t in r.views]
        return self.file, r.id, r.corners, r.caption, r.captions, named(r.names), r.tags, r.class_name or None, views, r.error

    def _cells(self, r: RegionResult) -> list:
        names = "; ".join(f"{name} {similarity:.2f}" for name, similarity in r.names)
        views = " ".join(f"{t:g}" for t in r.views)
        said = [r.caption, " | ".join(r.captions), names, "; ".join(r.tags), r.class_name, views, r.error]
        return [self.file, told_id(r.id), *(r.corners or [None] * 4), *said]


def _told(region: RegionResult) -> str:
    """A region as text, below the file's name."""
    box = f"  [{', '.join(map(str, region.corners or region.box))}]" if region.box is not None else ""
    about = [
        *region.captions,
        *([f"class: {region.class_name}"] if region.class_name else []),
        *([f"tags: {', '.join(region.tags)}"] if region.tags else []),
        *([f"names: {', '.join(f'{name} {similarity:.2f}' for name, similarity in region.names)}"] if region.names else []),
        *([f"error: {region.error}"] if region.error else []),
    ]
    return "".join([f"  {told_id(region.id) or '-'}{box}\n", *(f"    {line}\n" for line in about)])
