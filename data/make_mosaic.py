"""Writes test scenes: large georeferenced images made of small labelled ones, with a JSON file each that tells what is where.

    python data/make_mosaic.py SCENES --data DIR                                # 7 scenes of 10,000 x 10,000 pixels
    python data/make_mosaic.py HELD/scenes --data HELD --scenes 5               # of tiles held out by data/hold_out.py
    python data/make_mosaic.py SCENES --data DIR --split train --scenes 4       # to choose thresholds on
    python data/make_mosaic.py SCENES --data DIR --scenes 1 --size 100000 --sparse 2000

Each scene holds `planted` tiles of the split, of five classes, among train tiles of other classes and crops of the photos in
DIR/drone; data/README.md says what is asked about it. Tiles are painted block by block and the overviews grow along, so that
memory does not grow with the scene. SPLIT-N.tif is a Cloud Optimized GeoTIFF (BigTIFF), SPLIT-N.json what it holds.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import rasterio
import rasterio.shutil
import typer
from affine import Affine
from PIL import Image
from rasterio._err import CPLE_BaseError  # what rasterio.shutil raises; there is no public name
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.windows import Window

from evcap.cli.console import command
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import tqdm
from evcap.datasets.coco import read_coco_captions
from evcap.datasets.scenes import SIDE, Picture, Scene, Stock, Tile, plan_scene, write_scene
from evcap.datasets.ucm import UCM
from evcap.errors import EvcapError
from evcap.images.opening import find_images, open_image
from evcap.raster.blocks import is_whole

BLOCK, HALF = 512, 256  # pixels, of the TIFF's tiles
LEVEL = 6  # of DEFLATE
CACHE_MB = 64  # GDAL's blocks


def read_tiles(data: Path, split: str) -> dict[str, list[Picture]]:
    """The labelled images of one split of DATA/ucm."""
    found = defaultdict(list)
    for image in read_coco_captions(data / "ucm" / f"captions_{split}.json", data / "ucm" / "images"):
        if image.scene not in UCM:
            raise EvcapError(f"{image.path} has the scene {image.scene!r}, which is none of UC Merced: {', '.join(UCM)}")
        found[image.scene].append(Picture(str(image.path.relative_to(data)), image.scene, tuple(image.captions)))
    return dict(found)


def read_photos(data: Path) -> list[Picture]:
    """The photos in DATA/drone with their sizes."""
    paths = find_images([data / "drone"])
    photos = [Picture(str(path.relative_to(data)), size=open_image(path).size) for path in paths]
    for photo in photos:
        if min(photo.size) < SIDE:
            raise EvcapError(f"{data / photo.source} is smaller than a tile of {SIDE} pixels; take it out of the folder")
    return photos


class Painter:
    """Paints a scene block by block. Of the images only those in use are held: a few hundred tiles and four photos."""

    def __init__(self, scene: Scene, data: Path):
        self._data, self._size = data, (scene.width, scene.height)
        self._tiles = [*scene.background, *scene.planted]
        self._at: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, tile in enumerate(self._tiles):
            x1, y1, x2, y2 = tile.box
            for row in range(max(y1, 0) // BLOCK, (min(y2, scene.height) - 1) // BLOCK + 1):
                for column in range(max(x1, 0) // BLOCK, (min(x2, scene.width) - 1) // BLOCK + 1):
                    self._at[row, column].append(number)
        self._photo = lru_cache(4)(lambda source: open_image(data / source))
        self._pixels = lru_cache(256)(lambda number: self._read(self._tiles[number]))

    def occupied(self) -> set[tuple[int, int]]:
        """Row and column of each block that holds anything."""
        return set(self._at)

    def block(self, row: int, column: int) -> np.ndarray:
        """Its pixels (512,512,3) uint8; 0 in all bands where no tile of the scene is, in none where one is."""
        canvas = np.zeros((BLOCK, BLOCK, 3), np.uint8)
        width, height = min(BLOCK, self._size[0] - column * BLOCK), min(BLOCK, self._size[1] - row * BLOCK)
        for number in self._at[row, column]:
            x, y = self._tiles[number].box[0] - column * BLOCK, self._tiles[number].box[1] - row * BLOCK
            left, top = max(x, 0), max(y, 0)
            right, bottom = min(x + SIDE, width), min(y + SIDE, height)
            canvas[top:bottom, left:right] = self._pixels(number)[top - y : bottom - y, left - x : right - x]
        return canvas

    def _read(self, tile: Tile) -> np.ndarray:
        picture = self._photo(tile.source) if tile.crop else open_image(self._data / tile.source)
        if tile.crop or picture.size != (SIDE, SIDE):
            picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, tile.crop)
        pixels = np.rot90(np.asarray(picture), tile.turn & 3)
        return np.maximum(pixels[:, ::-1] if tile.turn & 4 else pixels, 1)


def halve(pixels: np.ndarray) -> np.ndarray:
    """(2h,2w,3) uint8 -> (h,w,3): the mean of those of four pixels that are not 0, rounded; 0 where all are."""
    quarters = [pixels[y::2, x::2] for y in (0, 1) for x in (0, 1)]
    filled = sum((quarter[..., :1] > 0).astype(np.uint16) for quarter in quarters)
    total = sum(quarter.astype(np.uint16) for quarter in quarters)
    return ((total + filled // 2) // np.maximum(filled, 1)).astype(np.uint8)


class Pyramid:
    """The scene and its overviews, one sparse TIFF a level in `folder`; FILE.ovr is the overview of FILE to GDAL."""

    def __init__(self, scene: Scene, painter: Painter, folder: Path, bar: tqdm):
        self.path, self._painter, self._bar = folder / "scene.tif", painter, bar
        self._files, self.occupied = [], [painter.occupied()]
        size, path = (scene.width, scene.height), self.path
        while True:
            self._files.append(_create(path, size, scene))
            if max(size) <= BLOCK:
                break
            size, path = tuple((length + 1) // 2 for length in size), path.with_name(path.name + ".ovr")
            self.occupied.append({(row // 2, column // 2) for row, column in self.occupied[-1]})

    def write(self) -> None:
        """Paint everything. A block is shrunk into its parent as soon as it is done: two blocks a level are held."""
        self._write(len(self._files) - 1, 0, 0)
        for file in self._files:
            file.close()

    def _write(self, level: int, row: int, column: int) -> np.ndarray:
        """Write a block and all below it. Returns its pixels (512,512,3)."""
        if level:
            pixels = np.zeros((BLOCK, BLOCK, 3), np.uint8)
            for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                if (2 * row + y, 2 * column + x) in self.occupied[level - 1]:
                    child = self._write(level - 1, 2 * row + y, 2 * column + x)
                    pixels[y * HALF : (y + 1) * HALF, x * HALF : (x + 1) * HALF] = halve(child)
        else:
            pixels = self._painter.block(row, column)
            self._bar.update()
        file = self._files[level]
        left, top = column * BLOCK, row * BLOCK
        width, height = min(BLOCK, file.width - left), min(BLOCK, file.height - top)
        file.write(np.moveaxis(pixels[:height, :width], 2, 0), window=Window(left, top, width, height))
        return pixels


def _create(path: Path, size: tuple[int, int], scene: Scene) -> rasterio.io.DatasetWriter:
    return rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=size[0],
        height=size[1],
        count=3,
        dtype="uint8",
        crs=scene.crs,
        transform=Affine(*scene.transform),  # of an overview it is not read
        nodata=0 if scene.sparse else None,
        photometric="RGB",
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        sparse_ok=True,
        bigtiff="YES",
        compress="LZW",  # read once: small enough, and quick
    )


def write_raster(scene: Scene, data: Path, path: Path, quiet: bool) -> None:
    """Paint a scene and its overviews into one file. Raises EvcapError, and an older file stays, if that fails."""
    painter = Painter(scene, data)
    bar = tqdm(total=len(painter.occupied()), desc=path.name, unit="block", disable=quiet)
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=CACHE_MB),
            bar,
            tempfile.TemporaryDirectory(prefix=".evcap-", dir=path.parent) as folder,
        ):
            pyramid = Pyramid(scene, painter, Path(folder), bar)
            pyramid.write()
            rasterio.shutil.copy(
                pyramid.path,
                Path(folder) / path.name,
                driver="COG",
                overviews="FORCE_USE_EXISTING",
                blocksize=BLOCK,
                compress="DEFLATE",
                predictor="YES",
                level=LEVEL,
                sparse_ok="YES",
                bigtiff="YES",
                num_threads="ALL_CPUS",
            )
            if not is_whole(Path(folder) / path.name, pyramid.occupied):
                raise RasterioIOError("its end is missing; is the disk full?")
            path.with_suffix(".json").unlink(missing_ok=True)  # it tells of the older image
            os.replace(Path(folder) / path.name, path)
    except (RasterioError, CPLE_BaseError) as error:
        raise EvcapError(f"cannot write {path}: {' '.join(str(error.__cause__ or error).split())}") from None


def main(
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the scenes go.")],
    data: DataFolder,
    split: Annotated[str, typer.Option(help="Of ucm, whose tiles are planted; the background is train.")] = "val",
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 7,
    size: Annotated[int, typer.Option(min=SIDE, help="Pixels of a side.")] = 10_000,
    planted: Annotated[int, typer.Option(min=2, help="Planted tiles in a scene.")] = 20,
    sparse: Annotated[int, typer.Option(min=0, help="That many other tiles on nothing, instead of a full background.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Other scenes.")] = 0,
    quiet: NoBars = False,
) -> None:
    train = read_tiles(data, "train")
    stock = Stock(train if split == "train" else read_tiles(data, split), train, read_photos(data))
    output.mkdir(parents=True, exist_ok=True)
    questions = 0
    for number in range(scenes):
        scene = plan_scene(stock, split, seed, number, size, planted, sparse)
        write_raster(scene, data, output / scene.image, quiet)
        write_scene(scene, (output / scene.image).with_suffix(".json"))
        questions += len(scene.questions)
        counts = ", ".join(f"{q.answer} {q.label}" for q in scene.questions if q.kind == "count")
        print(f"{output / scene.image}: {counts} among {len(scene.background):,} others", flush=True)
    print(f"{questions} questions about {scenes} scenes")


if __name__ == "__main__":
    typer.run(command(main))
