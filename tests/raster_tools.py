"""Small rasters for tests, written by rasterio from arrays that the tests know."""

import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

RGB = {"photometric": "RGB"}
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64}
PLACED = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_000_000, 0.3, 0.3)}


def noise(bands: int, height: int, width: int, dtype=np.uint8, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(bands * height + width).integers(low, high, (bands, height, width)).astype(dtype)


def write(path: Path, values: np.ndarray, colours=None, mask=None, descriptions=None, overviews=(), **profile) -> Path:
    """values: (bands,h,w). colours: names of colour interpretations; mask: (h,w) bool, kept beside the pixels."""
    shape = {"count": values.shape[0], "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **{"driver": "GTiff", **shape, **profile}) as file:
            if colours:
                file.colorinterp = [rasterio.enums.ColorInterp[name] for name in colours]
            for number, text in enumerate(descriptions or [], start=1):
                file.set_band_description(number, text)
            file.write(values)
            if mask is not None:
                file.write_mask(mask)
        if overviews:
            with rasterio.open(path, "r+") as file:
                file.build_overviews(list(overviews), rasterio.enums.Resampling.average)
    return path


def write_vrt(path: Path, size: tuple[int, int], band: str, kind: str = "") -> Path:
    """A VRT of one band of 8 bits; band: what stands inside of it."""
    open_band = f'<VRTRasterBand dataType="Byte" band="1" {kind}>'
    path.write_text(
        f'<VRTDataset rasterXSize="{size[0]}" rasterYSize="{size[1]}">{open_band}{band}</VRTRasterBand></VRTDataset>'
    )
    return path


def source(name: str, place: tuple[int, int, int, int] | None = None) -> str:
    """A VRT's source: the first band of a file beside it, or by its absolute path. place: x, y, width, height in the VRT."""
    file = f'<SourceFilename relativeToVRT="{int(not name.startswith("/"))}">{name}</SourceFilename><SourceBand>1</SourceBand>'
    rectangles = ""
    if place:
        shape = f'xSize="{place[2]}" ySize="{place[3]}"'
        rectangles = f'<SrcRect xOff="0" yOff="0" {shape}/><DstRect xOff="{place[0]}" yOff="{place[1]}" {shape}/>'
    return f"<SimpleSource>{file}{rectangles}</SimpleSource>"
