"""Comparison with the boxes of ImageRAG's patch divisions, as its public release gave them.

A recording is boxes.json: for image sizes ("1000x800") and patch divisions ("grid_10") the boxes, x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

from evcap.gigapixel.tiles.plans import make_plan


def compare_boxes(folder: Path) -> dict:
    """The object that is printed for a recording of ImageRAG."""
    compared = {}
    for size, plans in json.loads((folder / "boxes.json").read_text()).items():
        width, height = map(int, size.split("x"))
        compared[size] = {name: boxes_equal(name, width, height, recorded) for name, recorded in plans.items()}
    results = [result["equal"] for plans in compared.values() for result in plans.values()]
    return {"boxes": compared, "compared": len(results), "passed": bool(results) and all(results)}


def boxes_equal(name: str, width: int, height: int, recorded: list[list[int]]) -> dict:
    """Of one plan: equal, count, and if they differ the recording's count and the first number where they do."""
    boxes = make_plan(name.replace("_", "-"), width, height).boxes().tolist()
    if boxes == recorded:
        return {"equal": True, "count": len(boxes)}
    pairs = zip_longest(boxes, recorded)
    number, (ours, theirs) = next((number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
    counts = {"count": len(boxes), "recorded_count": len(recorded)}
    return {"equal": False, **counts, "first_difference": {"number": number, "ours": ours, "recorded": theirs}}
