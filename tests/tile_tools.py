"""Tools for tests of the tile index: scenes, and an encoder without a model that sees every part of a tile."""

import time
import warnings

import numpy as np
import rasterio
import torch
from PIL import Image
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

SIDE = 32
MATRIX = np.random.default_rng(0).standard_normal((48, 12)).astype(np.float32)


class PlainEncoder:
    """Features (n,2,6) of tiles of 32 pixels: their 4 x 4 colours by a fixed matrix. `calls` holds the sizes of batches."""

    encoder_fingerprint = "plain"
    image_size = SIDE
    shape = (2, 6)

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.calls = seconds, []

    def query_features(self, images, batch_size):
        self.calls.append(len(images))
        time.sleep(self.seconds)
        return torch.from_numpy(np.stack([features(np.asarray(image)) for image in images])).reshape(-1, 2, 6)


def features(pixels: np.ndarray) -> np.ndarray:
    """(12,) float32 of a tile (h,w,3) uint8."""
    small = Image.fromarray(pixels).resize((4, 4), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(48) @ MATRIX / 255


def write_scene(path, width=400, height=300, block=64, content=None, overviews=(), seed=0, **options) -> np.ndarray:
    """A TIFF of noise in soft colours; its pixels (h,w,3). content: boxes that are written, of a sparse file; None: all.

    block: side of its tiles, 0 for strips.
    """
    draw = np.random.default_rng(seed)
    soft = draw.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC)).copy()
    layout = {"tiled": True, "blockxsize": block, "blockysize": block} if block else {"blockysize": 8}
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile | layout | {"SPARSE_OK": content is not None} | options) as file:
            for x1, y1, x2, y2 in [(0, 0, width, height)] if content is None else content:
                file.write(pixels[y1:y2, x1:x2].transpose(2, 0, 1), window=Window(x1, y1, x2 - x1, y2 - y1))
        if overviews:
            with rasterio.open(path, "r+") as file:
                file.build_overviews(list(overviews), Resampling.average)
    return pixels
