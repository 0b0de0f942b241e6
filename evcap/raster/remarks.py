"""What somebody should know about a raster before trusting answers about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evcap.raster.bands import Bands

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

WITHOUT_OVERVIEWS = 4096  # pixels of the longer side up to which nobody misses overviews
CONVERT = "data/make_cog.py makes a copy that is read faster"


def remarks(
    dataset: DatasetReader, bands: Bands, limits: np.ndarray | None, striped: bool, percentiles: tuple[float, float] | None
) -> list[str]:
    """One line each: place, storage, colours. limits (bands,2): what is stretched to 0..255; percentiles: as found."""
    colours = _colours(dataset, bands, limits, percentiles) if percentiles else []
    return [*_place(dataset), *_storage(dataset, bands, striped), *bands.notes, *colours]


def _place(dataset: DatasetReader) -> list[str]:
    if not dataset.transform.is_identity:
        return [] if dataset.crs else ["no coordinate system: positions are pixel coordinates"]
    points = "ground control points" if dataset.gcps[0] else "rational polynomials (RPC)" if dataset.rpcs else None
    if points:
        return [f"located by {points} only: positions are pixel coordinates; gdalwarp makes a copy with map coordinates"]
    orientation = dataset.tags().get("EXIF_Orientation", "1")
    turned = [f"EXIF orientation {orientation} is not applied: positions are those of the stored pixels"]
    return ["not georeferenced: positions are pixel coordinates", *(turned if orientation != "1" else [])]


def _storage(dataset: DatasetReader, bands: Bands, striped: bool) -> list[str]:
    pages = len(dataset.subdatasets)
    found = [f"the first of {pages} images in the file is read"] if pages > 1 else []
    if striped:
        found.append(f"stored in rows, not in tiles: {CONVERT}")
    if max(dataset.shape) > WITHOUT_OVERVIEWS and not dataset.overviews(bands.numbers[0]):
        found.append(f"no overviews: a view of the whole reads every pixel; {CONVERT}")
    return found


def _colours(dataset: DatasetReader, bands: Bands, limits: np.ndarray, percentiles: tuple[float, float]) -> list[str]:
    dtype = dataset.dtypes[bands.numbers[0] - 1]
    spans = ", ".join(f"{low:g} to {high:g}" for low, high in limits)
    low, high = percentiles
    return [f"{dtype} shown as 8 bits, from percentile {low:g} to {high:g} of each band (--stretch): {spans}"]
