"""A data folder as data/make_mosaic.py reads it, with small files: tiles of coarse noise, no two alike."""

import json
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data.make_mosaic import read_photos, read_tiles
from evcap.datasets.scenes import SIDE, Stock
from evcap.datasets.ucm import UCM


def make_data(folder: Path, tiles: int = 4) -> Path:
    """DIR/ucm with `tiles` images a class and split, every second PNG with pixels of 0, and two photos in DIR/drone."""
    rng = np.random.default_rng(0)
    (folder / "ucm" / "images").mkdir(parents=True)
    (folder / "drone").mkdir()
    save = partial(_save, rng)
    for split in ("train", "val"):
        files = [(label, f"{label}-{split}-{n}.png") for label in UCM for n in range(tiles)]
        for number, (_, file) in enumerate(files):
            save(folder / "ucm" / "images" / file, (SIDE, SIDE), number % 2)
        captions = {
            "images": [{"id": n, "file_name": file, "scene": label} for n, (label, file) in enumerate(files)],
            "annotations": [{"image_id": n, "caption": f"This is {UCM[label].one} ."} for n, (label, _) in enumerate(files)],
        }
        (folder / "ucm" / f"captions_{split}.json").write_text(json.dumps(captions))
    save(folder / "drone" / "a.png", (600, 400), 0)
    save(folder / "drone" / "b.png", (300, 700), 0)
    return folder


def _save(rng: np.random.Generator, path: Path, size: tuple[int, int], black: int) -> None:
    noise = rng.integers(0, 256, (12, 12, 3), np.uint8)
    noise[:6] *= 1 - black
    Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(path)


def stock(data: Path, split: str) -> Stock:
    """What the command reads from such a folder."""
    return Stock(read_tiles(data, split), read_tiles(data, "train"), read_photos(data))
