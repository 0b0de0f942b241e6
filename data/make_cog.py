"""Copies a raster into a cloud-optimised GeoTIFF: in tiles, with overviews, so that any part is read fast at any scale.

    python data/make_cog.py big.tif big-cog.tif

For rasters stored in rows or without overviews. Every format is taken that evcap reads (GeoTIFF, JPEG 2000, VRT, PNG, JPEG);
bands, types, nodata and place stay as they are, and so do the values unless --compress is jpeg or webp. Memory grows
with the width alone (0.8 GB at 100,000 pixels of 3 bytes); beside the output there must be room for it and, meanwhile, for a
third more. The output appears when it is whole; a file that is there is not replaced.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import numpy as np
import rasterio
import rasterio.shutil
import typer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader

from evcap.cli.console import command
from evcap.cli.options import NoBars
from evcap.cli.progress import tqdm
from evcap.errors import EvcapError
from evcap.raster.blocks import is_whole
from evcap.raster.raster import Raster

Compression = StrEnum("Compression", ["deflate", "zstd", "lzw", "jpeg", "webp"])
BLOCK = 512  # pixels of a side
LEAST_CACHE = 1 << 27  # bytes
SECONDS = 0.2  # between two looks at what was written


def lossy(compression: Compression) -> bool:
    return compression in (Compression.jpeg, Compression.webp)


def cog_options(dataset: DatasetReader, compression: Compression, quality: int) -> dict[str, str]:
    """Of GDAL's COG driver. Of numbers of colours no mean is taken; differences are compressed of whole bytes only."""
    indexed = dataset.colorinterp[0].name == "palette"
    options = {"COMPRESS": compression.name.upper(), "BIGTIFF": "IF_SAFER", "NUM_THREADS": "ALL_CPUS", "SPARSE_OK": "YES"}
    options |= {"BLOCKSIZE": str(BLOCK), "OVERVIEW_RESAMPLING": "MODE" if indexed else "AVERAGE"}
    if lossy(compression):
        return options | {"QUALITY": str(quality)}
    whole_bytes = "NBITS" not in dataset.tags(ns="IMAGE_STRUCTURE", bidx=1)
    return options | ({"PREDICTOR": "YES"} if whole_bytes and not indexed else {})


def cache_bytes(dataset: DatasetReader) -> int:
    """Two rows of the output's blocks, decoded: with less, rows of a raster that is stored so were decoded for every block."""
    pixel = sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    return max(LEAST_CACHE, 2 * BLOCK * dataset.width * pixel)


@contextmanager
def silent_libraries() -> Iterator[TextIO]:
    """libtiff writes to standard error by itself, line after line, when a disk is full. Meanwhile this is standard error."""
    with os.fdopen(os.dup(2), "w") as real, open(os.devnull, "wb") as nowhere:
        sys.stderr.flush()
        os.dup2(nowhere.fileno(), 2)
        try:
            yield real
        finally:
            os.dup2(real.fileno(), 2)


def bytes_in(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # GDAL removes the overviews it made first
            size += file.stat().st_size
    return size


def write_cog(source: Path, target: Path, compression: Compression, quality: int, quiet: bool) -> None:
    """GDAL copies in a thread, while this one counts the bytes it has written. Raises EvcapError if it cannot."""
    failed: list[Exception] = []

    def copy() -> None:
        try:
            with rasterio.open(source) as dataset, rasterio.Env(GDAL_CACHEMAX=cache_bytes(dataset)):
                if lossy(compression) and set(dataset.dtypes) != {"uint8"}:
                    raise EvcapError(f"{compression} holds 8 bits, not {dataset.dtypes[0]}; take deflate")
                rasterio.shutil.copy(dataset, target, driver="COG", **cog_options(dataset, compression, quality))
        except Exception as error:  # GDAL's own are of many classes
            failed.append(error)

    thread = threading.Thread(target=copy, daemon=True)  # so that Ctrl-C ends it
    with (
        silent_libraries() as stderr,
        tqdm(desc="written", unit="B", unit_scale=True, file=stderr, disable=quiet or None) as bar,
    ):
        thread.start()
        while thread.is_alive():
            thread.join(SECONDS)
            bar.update(max(0, bytes_in(target.parent) - bar.n))
    if failed:
        reason = failed[0]
        while reason.__cause__ is not None:  # GDAL's own words
            reason = reason.__cause__
        raise EvcapError(f"{source}: not converted: {' '.join(str(reason).split())}")


def main(
    source: Annotated[Path, typer.Argument(help="The raster.")],
    output: Annotated[Path, typer.Argument(help="The GeoTIFF to write.")],
    compress: Annotated[Compression, typer.Option(help="jpeg and webp, for 8 bits, change values a little.")] = "deflate",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of jpeg and webp.")] = 85,
    quiet: NoBars = False,
) -> None:
    if output.exists():
        raise EvcapError(f"{output} is there already; name another file, or remove it first")
    if output.suffix.lower() not in (".tif", ".tiff"):
        raise EvcapError(f"{output} does not end in .tif")
    if not output.parent.is_dir():
        raise EvcapError(f"there is no folder {output.parent}")
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    with Raster(source) as raster, tempfile.TemporaryDirectory(prefix=".make_cog-", dir=output.parent) as folder:
        whole = Path(folder) / output.name
        write_cog(source.absolute(), whole, compress, quality, quiet)
        raster.check_unchanged()
        if not is_whole(whole):
            raise EvcapError(f"{source}: not converted: the end of the copy is missing; is the disk full?")
        with Raster(whole) as written:
            size = f"{written.width:,} x {written.height:,} pixels, {whole.stat().st_size / 1e6:,.1f} MB"
        whole.rename(output)
    print(f"{output}: {size}")


if __name__ == "__main__":
    typer.run(command(main))
