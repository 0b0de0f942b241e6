"""Nested views of a region, from its box (t = 0) to the whole image (t = 1): which to take, and where the region lies in them.

DynRefer, CVPR 2025 (arXiv 2405.16071). Boxes are (x1,y1,x2,y2) in pixels, in float32 as in the release: another precision cuts
some of them elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from evcap.errors import EvcapError
from evcap.regions.perceptual_hash import grey_levels, perceptual_hashes
from evcap.text_files import one_line

CANDIDATES = np.arange(1, 11) / 10  # the t of views beside the region itself
# the second view where the task is known (the paper's ablation; the release has the hash alone)
TASK_RATIOS = {"auto": (), "attributes": (0.1,), "caption": (0.4, 0.5)}


def checked_regions(boxes: Sequence[Sequence[float]] | np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes (N,4) of an image of width x height pixels -> regions (N,4) float32, cut where they leave the image.

    A side that lies within one pixel becomes that pixel. Raises EvcapError with one line for the first box that is no box, has
    corners that are swapped or not finite, is empty, or lies outside the image.
    """
    return np.stack([_checked_region(box, width, height) for box in boxes]) if len(boxes) else np.zeros((0, 4), np.float32)


def _checked_region(box, width: int, height: int) -> np.ndarray:
    try:
        corners = np.asarray(box, np.float64)
    except (TypeError, ValueError, OverflowError):
        corners = np.zeros(0)
    if corners.shape != (4,):
        raise EvcapError(f"box {_told(box)} is not four numbers: give x1,y1,x2,y2 in pixels")
    if not np.isfinite(corners).all():
        raise EvcapError(f"box {_told(corners)} has a corner that is no finite number: give x1,y1,x2,y2 in pixels")
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        raise EvcapError(f"box {_told(corners)} has swapped corners: give x1,y1,x2,y2 with x1 < x2 and y1 < y2")
    if x1 == x2 or y1 == y2:
        raise EvcapError(f"box {_told(corners)} is empty: give x1,y1,x2,y2 with x1 < x2 and y1 < y2")
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise EvcapError(f"box {_told(corners)} lies outside the image, which is {width} x {height} pixels")
    limits = np.array([width, height, width, height])
    first, last = np.split(np.clip(corners, 0, limits).astype(np.float32), 2)
    within = np.floor(first) == np.floor(last)  # of one pixel: nothing would be left of the crop
    first = np.where(within, np.minimum(np.floor(first), limits[:2] - 1), first)
    return np.concatenate([first, np.where(within, first + 1, last)]).astype(np.float32)


def _told(box) -> str:
    """A box in an error message, cut if it is long."""
    try:
        text = ",".join(f"{float(number):g}" for number in box)
    except (TypeError, ValueError, OverflowError):
        text = repr(box)
    return text if len(text) <= 60 else f"{text[:57]}..."


def polygon_region(polygons: Sequence[Sequence[float]]) -> np.ndarray:
    """The box (4,) float32 around polygons, each x,y,x,y,...; a side of one pixel or less becomes exactly one.

    As in the release: to the left or up, where there is room. Raises EvcapError for no points, or numbers that are no points.
    """
    try:
        points = np.concatenate([np.asarray(polygon, np.float32).reshape(-1, 2) for polygon in polygons])
    except (TypeError, ValueError) as error:
        raise EvcapError(f"a polygon is a list x,y,x,y,... of its points, at least one of them ({one_line(error)})") from None
    if not points.size or not np.isfinite(points).all():
        raise EvcapError("a polygon is a list x,y,x,y,... of its points, at least one of them and all finite")
    first, last = points.min(0), points.max(0)
    narrow = last - first <= 1
    back = narrow & (last > 0)
    return np.concatenate([np.where(back, last - 1, first), np.where(narrow & ~back, first + 1, last)]).astype(np.float32)


def mask_region(mask: np.ndarray) -> np.ndarray:
    """The box (4,) int64 of what is set in a mask (H,W). As in the release, x2 and y2 are the last set column and row.

    So a mask of one column or row gives an empty box. Raises EvcapError for a mask in which nothing is set.
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise EvcapError("nothing is set in the mask of a region")
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


def view_boxes(regions: np.ndarray, ratios: np.ndarray, width: int, height: int) -> np.ndarray:
    """Regions (N,4) float32 and t of their views, (V,) or (N,V) -> B(t) = B + t (image - B), (N,V,4) float32, not cut."""
    t = np.broadcast_to(np.asarray(ratios, np.float32), (len(regions), np.shape(ratios)[-1]))
    image = np.array([0, 0, width, height], np.float32)
    boxes = np.asarray(regions, np.float32)[:, None]
    return boxes + (image - boxes) * t[..., None]


def crop_boxes(views: np.ndarray, width: int, height: int) -> np.ndarray:
    """View boxes (...,4) float32 -> whole pixels (...,4) int64 within the image; the crop is rows y1:y2, columns x1:x2."""
    return np.clip(views, 0, np.array([width, height] * 2, np.float32)).astype(np.int64)


def boxes_in_views(regions: np.ndarray, crops: np.ndarray, size: int) -> np.ndarray:
    """Where each region lies in its views after they were resized to size x size.

    regions (N,4), crops (N,V,4) int64 as `crop_boxes` gives them, none empty -> (N,V,4) float32, whole numbers.
    """
    corner = np.tile(crops[..., :2], 2)
    sides = np.tile(crops[..., 2:], 2) - corner
    scale = (size / sides).astype(np.float32)
    inside = (regions[:, None] - corner).astype(np.float32)
    return np.trunc(inside * scale)


def located_views(regions: np.ndarray, ratios: np.ndarray, width: int, height: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Regions (N,4) of an image and t (N,V) of their views -> crops (N,V,4) int64, and where each region lies in its views
    after they were resized to size x size, (N,V,4) float32."""
    own = crop_boxes(regions, width, height)
    crops = crop_boxes(view_boxes(regions, ratios, width, height), width, height)
    return crops, boxes_in_views(own, crops, size)


def crop_views(image: Image.Image, crops: np.ndarray, size: int) -> list[Image.Image]:
    """Crops (...,4) of an image, resized to size x size (bicubic, proportions not kept), in the order of the boxes.

    Resized one by one: many crops at their own size are many times the image.
    """
    return [_resized(image, tuple(box), size) for box in crops.reshape(-1, 4).tolist()]


def _resized(image: Image.Image, box: tuple[int, ...], size: int) -> Image.Image:
    return image.crop(box).resize((size, size), Image.Resampling.BICUBIC)


def view_scores(image: Image.Image, regions: np.ndarray) -> np.ndarray:
    """How much each candidate view adds to the region's own: bits of the perceptual hash that differ, over t.

    regions (N,4) float32 as `checked_regions` gives them -> (N,10) float64, at least 0.
    """
    ratios = np.concatenate([[0.0], CANDIDATES])
    crops = crop_boxes(view_boxes(regions, ratios, *image.size), *image.size)
    bits = perceptual_hashes(grey_levels(image), crops.reshape(-1, 4)).reshape(len(regions), len(ratios), 64)
    return (bits[:, 1:] != bits[:, :1]).sum(-1) / CANDIDATES


def selected_ratios(scores: np.ndarray, views: int, task: str = "auto") -> np.ndarray:
    """t of the views of each region, (N,views): 0 first, then candidates, best score first and none twice.

    scores (N,10). task: `caption` and `attributes` choose the second view among those that suit the task best. Where scores are
    equal, the smaller t comes first. Raises EvcapError for a task or a number of views that there is not.
    """
    _check_count(views)
    if task not in TASK_RATIOS:
        raise EvcapError(f"unknown task '{task}', known: {', '.join(TASK_RATIOS)}")
    ranked = np.argsort(-scores, axis=1, kind="stable")
    if TASK_RATIOS[task]:
        suits = np.isin(CANDIDATES, TASK_RATIOS[task])[ranked]
        best = suits.argmax(1)[:, None]  # the first that suits
        rest = ranked[np.arange(ranked.shape[1]) != best].reshape(len(ranked), ranked.shape[1] - 1)
        ranked = np.concatenate([np.take_along_axis(ranked, best, 1), rest], axis=1)
    return _with_region(CANDIDATES[ranked[:, : views - 1]])


def release_ratios(scores: np.ndarray, views: int) -> np.ndarray:
    """As `selected_ratios` for no task, by the release's rule: what was taken counts 0 from then on.

    So where fewer scores than views are positive, the first candidate is taken, again and again.
    """
    _check_count(views)
    ranked = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.where(np.take_along_axis(scores, ranked, 1) > 0, ranked, 0)
    return _with_region(CANDIDATES[ranked[:, : views - 1]])


def random_ratios(regions: int, views: int, generator: torch.Generator) -> np.ndarray:
    """t of the views of regions in training, (regions,views): 0 first, then candidates, uniform, none twice, in any order."""
    _check_count(views)
    drawn = torch.rand(regions, len(CANDIDATES), generator=generator).argsort(dim=1)
    return _with_region(CANDIDATES[drawn[:, : views - 1].numpy()])


def _check_count(views: int) -> None:
    if not 1 <= views <= 1 + len(CANDIDATES):
        raise EvcapError(f"a region has 1 to {1 + len(CANDIDATES)} views, not {views}")


def _with_region(ratios: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((len(ratios), 1)), ratios], axis=1)
