"""Boxes of a large image: in pixels, in thousandths, in the ground's coordinates, in words; and which of them overlap.

A box is x1,y1,x2,y2 in pixels of full resolution, half-open, with 0,0 at the upper left corner of the image, so that its
corners are corners of pixels. `transform` is the affine of a raster that takes these corners to coordinates of its CRS.
Longitude comes before latitude everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evcap.errors import EvcapError

if TYPE_CHECKING:
    from affine import Affine
    from rasterio.crs import CRS

Box = Sequence[int]
ROWS, COLUMNS = ("upper", "centre", "lower"), ("left", "centre", "right")
STRAIGHT = 0.5  # pixels that an edge may lie beside its chord in longitude and latitude
MOST_PARTS = 64  # of an edge
DECIMALS = 9  # of a degree: 0.1 mm, below the pixel of any camera


def to_thousandths(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes (...,4) in pixels -> (...,4) int64 in 0..1000 of the image's sides, as prompts have them."""
    return np.rint(np.asarray(boxes) * 1000 / np.array([width, height] * 2)).astype(np.int64)


def from_thousandths(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes (...,4) in 0..1000 of the sides -> (...,4) int64 pixels, at most a thousandth of the side from the original."""
    return np.rint(np.asarray(boxes) * np.array([width, height] * 2) / 1000).astype(np.int64)


def pixel_to_crs(points: np.ndarray, transform: Affine) -> np.ndarray:
    """Points (n,2) x,y in pixels -> (n,2) float64 in the units of the raster's CRS."""
    return _apply(transform, points)


def crs_to_pixel(points: np.ndarray, transform: Affine) -> np.ndarray:
    """The inverse of `pixel_to_crs`."""
    return _apply(~transform, points)


def _apply(transform: Affine, points: np.ndarray) -> np.ndarray:
    a, b, c, d, e, f = transform[:6]
    return np.asarray(points, np.float64) @ np.array([[a, d], [b, e]]) + [c, f]


def crs_to_lonlat(points: np.ndarray, crs: CRS) -> np.ndarray:
    """Points (n,2) of a CRS -> (n,2) float64 longitude, latitude of EPSG:4326; EvcapError where there are none."""
    return _warp(points, crs, "EPSG:4326")


def lonlat_to_crs(points: np.ndarray, crs: CRS) -> np.ndarray:
    """The inverse of `crs_to_lonlat`."""
    return _warp(points, "EPSG:4326", crs)


def _warp(points: np.ndarray, source: CRS | str, target: CRS | str) -> np.ndarray:
    from rasterio.warp import transform

    try:
        warped = np.stack(transform(source, target, *np.asarray(points, np.float64).T), axis=1)
    except Exception as error:  # GDAL's, whose class rasterio keeps to itself
        raise EvcapError(f"no way from {source} to {target}: {str(error).splitlines()[0][:100]}") from None
    if not np.isfinite(warped).all():
        raise EvcapError(f"no way from {source} to {target}: points outside of the projection")
    return warped


def crs_ring(box: Box, transform: Affine, parts: int = 1) -> np.ndarray:
    """The outline of a box in the raster's CRS, (4·parts+1,2) float64, closed: each edge in `parts` equal pieces."""
    return pixel_to_crs(_outline(box, parts), transform)


def _outline(box: Box, parts: int) -> np.ndarray:
    x1, y1, x2, y2 = box
    corners = np.array([(x1, y1), (x1, y2), (x2, y2), (x2, y1), (x1, y1)], np.float64)
    along = np.arange(parts)[:, None] / parts
    pieces = [start + (end - start) * along for start, end in zip(corners, corners[1:], strict=False)]
    return np.concatenate([*pieces, corners[:1]])


def lonlat_geometry(box: Box, transform: Affine, crs: CRS) -> dict | None:
    """The outline of a box as a GeoJSON geometry (RFC 7946) in EPSG:4326; None where the CRS cannot be taken there.

    Edges get as many points as they need to lie within half a pixel of the true outline, at most 64 an edge. The outer
    ring runs counterclockwise. A box across the antimeridian becomes a MultiPolygon of its two sides.
    """
    try:
        parts = 1
        ring = _lonlat_ring(box, transform, crs, 4)[::4]  # at quarters of an edge it shows how the ring goes round the earth
        while parts < MOST_PARTS and _deviation(box, ring, transform, crs) > STRAIGHT:
            parts *= 2
            ring = _lonlat_ring(box, transform, crs, max(parts, 4))[:: max(4 // parts, 1)]
    except EvcapError:
        return None
    rings = [ring]
    if ring[:, 0].max() > 180 + 1e-9:
        rings = [_clipped(ring, 180, 1), _clipped(ring, 180, -1) - [360, 0]]
    polygons = [[_counterclockwise(r).round(DECIMALS).tolist()] for r in rings]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def _lonlat_ring(box: Box, transform: Affine, crs: CRS, parts: int) -> np.ndarray:
    """The outline of a box, its longitudes without jumps: the first side in -180..180, what lies behind 180 above it."""
    ring = crs_to_lonlat(crs_ring(box, transform, parts), crs)
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)
    ring[:, 0] -= 360 * np.floor((ring[:, 0].min() + 180) / 360)
    return ring


def _deviation(box: Box, ring: np.ndarray, transform: Affine, crs: CRS) -> float:
    """Pixels that the middles of the ring's chords lie from where they should; the ring has equal parts an edge."""
    parts = (len(ring) - 1) // 4
    true = _outline(box, 2 * parts)[1::2]
    chords = (ring[1:] + ring[:-1]) / 2
    found = crs_to_pixel(lonlat_to_crs(chords, crs), transform)
    return float(np.abs(found - true).max())


def _clipped(ring: np.ndarray, longitude: float, side: int) -> np.ndarray:
    """The part of a closed ring on one side of a meridian, closed (Sutherland and Hodgman 1974). side: 1 west, -1 east."""
    kept = []
    for start, end in zip(ring, ring[1:], strict=False):
        inside = side * (longitude - start[0]) >= 0
        if inside:
            kept.append(start)
        if inside != (side * (longitude - end[0]) >= 0):
            share = (longitude - start[0]) / (end[0] - start[0])
            kept.append([longitude, start[1] + share * (end[1] - start[1])])
    return np.array([*kept, kept[0]])


def _counterclockwise(ring: np.ndarray) -> np.ndarray:
    x, y = (ring - ring[0]).T  # near the origin, where small boxes keep their digits
    return ring if np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0 else ring[::-1]


def union(boxes: np.ndarray) -> np.ndarray:
    """The smallest box (4,) around boxes (n,4), n >= 1 (ImageRAG's union of cues)."""
    boxes = np.asarray(boxes)
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def cell_words(box: Box, width: int, height: int) -> str:
    """Which of 3 x 3 equal cells of the image a box covers most of: "upper left", "centre", "lower centre" ...

    Where several cells are covered alike, that of the box's centre.
    """
    column = _third(box[0], box[2], width)
    row = _third(box[1], box[3], height)
    return "centre" if row == column == 1 else f"{ROWS[row]} {COLUMNS[column]}"


def _third(start: float, end: float, side: float) -> int:
    """The third of a side that an interval overlaps most, which cell by cell is the row or column of the largest area."""
    edges = np.arange(4) * side / 3
    overlap = np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1])
    middle = min(int(3 * (start + end) / 2 // side), 2)
    return middle if np.isclose(overlap[middle], overlap.max(), atol=1e-9 * side) else int(overlap.argmax())


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Common pixels of each of boxes (n,4) with each of (m,4): (n,m) float64."""
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return sides.clip(0).prod(-1)


def areas(boxes: np.ndarray) -> np.ndarray:
    """(n,) float64 pixels of boxes (n,4)."""
    boxes = np.asarray(boxes, np.float64)
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(-1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n,4) with (m,4): (n,m) float64 in 0..1; 0 for boxes without area."""
    common = intersections(a, b)
    return common / np.maximum(areas(a)[:, None] + areas(b)[None] - common, 1e-9)


def containment(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over the smaller area, (n,m) float64 in 0..1: 1 where a box lies inside the other."""
    return intersections(a, b) / np.maximum(np.minimum(areas(a)[:, None], areas(b)[None]), 1e-9)


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float = 0.5, most: int | None = None) -> np.ndarray:
    """Greedy non-maximum suppression over boxes (n,4) of one or several levels -> (k,) int64 of those kept, best first.

    Of boxes whose `containment` is above `overlap` only the one of the higher score stays, so that a coarse tile and a fine
    one inside it do not both count. Of equal scores the first counts as higher. most: stop at so many; None = all.
    """
    boxes = np.asarray(boxes)
    left = np.argsort(-np.asarray(scores), kind="stable")
    kept = []
    while len(left) and (most is None or len(kept) < most):
        best, left = left[0], left[1:]
        kept.append(best)
        left = left[containment(boxes[best][None], boxes[left])[0] <= overlap]
    return np.array(kept, np.int64)
