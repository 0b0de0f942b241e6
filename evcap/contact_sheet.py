"""A picture of a scored run: its best, median and worst captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scored:
    """One captioned picture with its score (CIDEr, percent), a reference and the names its memory gave."""

    path: Path
    caption: str
    score: float
    reference: str
    names: list[str]


def draw_contact_sheet(rows: Sequence[Scored], output: str | Path, title: str, columns: int = 4) -> None:
    """Write a PNG with the `columns` best, median and worst pictures by score."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from evcap.images import open_image

    ranked = sorted(rows, key=lambda r: -r.score)
    columns = max(1, min(columns, len(ranked) // 3))
    middle = (len(ranked) - columns) // 2
    bands = {"best": ranked[:columns], "median": ranked[middle : middle + columns], "worst": ranked[-columns:]}
    figure, axes = plt.subplots(3, columns, figsize=(3.9 * columns, 14), squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=15)
    for line, (band, chosen) in zip(axes, bands.items(), strict=True):
        for axis, item in zip(line, chosen, strict=True):
            axis.imshow(open_image(item.path))
            axis.set(xticks=[], yticks=[])
            axis.set_title(textwrap.fill(item.caption, 38), fontsize=11, fontweight="bold", loc="left")
            below = [f"{band}, CIDEr {item.score:.0f}"]
            below += textwrap.wrap(f"people say: {item.reference}", 46)[:3]
            below += textwrap.wrap(f"memory: {', '.join(item.names) or 'no names'}", 46)[:3]
            axis.set_xlabel("\n".join(below), fontsize=9, loc="left")
    figure.savefig(output, dpi=100)
    plt.close(figure)
