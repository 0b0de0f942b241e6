"""Evidence: where in a large image an answer was looked for, as GeoJSON and as the JSON of `evcap ask --json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evcap.errors import EvcapError
from evcap.files import write_text
from evcap.raster.geo import cell_words, lonlat_geometry, to_thousandths

if TYPE_CHECKING:
    from evcap.gigapixel.ask.question import Question
    from evcap.raster.raster import Raster

DIGITS = 6  # of scores and similarities that are written


@dataclass(frozen=True)
class Evidence:
    """A part of the image that was looked at.

    box: x1,y1,x2,y2 in pixels, half-open. score: of the retrieval, larger is better. caption: what was said of it.
    names: (name, cosine similarity) from the memory, best first. path: what found it; "overview" is the whole image.
    phrase: which it was found for, or "".
    """

    box: tuple[int, int, int, int]
    score: float
    caption: str
    names: list[tuple[str, float]] = field(default_factory=list)
    path: Literal["fast", "slow", "overview"] = "fast"
    phrase: str = ""


def numbered(evidence: Sequence[Evidence]) -> list[tuple[int, Evidence]]:
    """The numbers that evidence has in all files of an answer: 1, 2, ... in order; 0 is the overview."""
    boxes = (item for item in evidence if item.path != "overview")
    return [(0, item) for item in evidence if item.path == "overview"] + list(enumerate(boxes, 1))


def write_geojson(path: str | Path, raster: Raster, evidence: Sequence[Evidence], question: str, answer: str) -> None:
    """Write a FeatureCollection (RFC 7946): one feature for each evidence, with question and answer beside them.

    Geometries are outlines in longitude and latitude, see `geo.lonlat_geometry`. Without georeferencing they are null:
    pixel coordinates there would be read as degrees. The pixel boxes stand among the properties either way.
    The file appears whole or not at all. Raises EvcapError if it cannot be written.
    """
    features = []
    for number, item in numbered(evidence):
        properties = described(raster, item, number)
        features.append({"type": "Feature", "id": number, "geometry": properties.pop("geometry"), "properties": properties})
    head = json.dumps({"type": "FeatureCollection", "question": question, "answer": answer})
    lines = ",\n".join(json.dumps(feature, allow_nan=False) for feature in features)
    try:
        write_text(Path(path), f'{head[:-1]}, "features": [\n{lines}\n]}}\n')
    except OSError as error:
        raise EvcapError(f"cannot write {path}: {error.strerror}") from None


def evidence_json(
    raster: Raster,
    question: Question,
    answer: str,
    path: str,
    evidence: Sequence[Evidence],
    encoded: int,
    tiles: int,
    seconds: float,
) -> str:
    """One line of JSON that tells all about an answer.

    path: which found the evidence, "fast", "slow" or "none". encoded: tiles encoded for this answer or before, of `tiles`.
    """
    told = {
        "question": question.text,
        "answer": answer,
        "kind": question.kind,
        "phrases": question.phrases,
        "choices": question.choices,
        "path": path,
        "raster": {"file": str(raster.path), "width": raster.width, "height": raster.height},
        "tiles": {"encoded": encoded, "all": tiles},
        "evidence": [described(raster, item, number) for number, item in numbered(evidence)],
        "seconds": round(seconds, 3),
        "notes": [*raster.notes, *([question.note] if question.note else [])],
    }
    return json.dumps(told, allow_nan=False)


def described(raster: Raster, item: Evidence, number: int) -> dict[str, Any]:
    """The JSON object of one evidence: values plain or lists of plain ones, of which GDAL makes columns.

    Without names both lists are null: an empty one would make the column text.
    """
    located = raster.crs is not None and raster.transform is not None
    box = [int(side) for side in item.box]
    return {
        "number": number,
        "phrase": item.phrase,
        "score": _number(item.score),
        "path": item.path,
        "cell": cell_words(box, raster.width, raster.height),
        "caption": item.caption,
        "names": [name for name, _ in item.names] or None,
        "similarities": [_number(similarity) for _, similarity in item.names] or None,
        "box_pixels": box,
        "box_thousandths": to_thousandths(box, raster.width, raster.height).tolist(),
        "geometry": lonlat_geometry(box, raster.transform, raster.crs) if located else None,
    }


def _number(value: float) -> float | None:
    """A float that JSON knows, in few digits."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
