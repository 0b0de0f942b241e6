"""Starts processes that fill a tile index: `python tile_writer.py RASTER FOLDER`, one for each number on standard input.

Each is a fork, so that Python starts and imports but once. It prints its process id when it is about to encode the batch of
that number; when it is over or was killed, "gone" is printed.
"""

import os
import sys

import rasterio
from tile_tools import PlainEncoder

from evcap.gigapixel.tiles import index as tiles
from evcap.gigapixel.tiles.index import TileIndex
from evcap.gigapixel.tiles.plans import make_plan
from evcap.raster.raster import Raster


def say(text: object) -> None:
    """One line by one system call: print makes two where PYTHONUNBUFFERED is set, and a kill may fall between them."""
    os.write(1, f"{text}\n".encode())


class Telling(PlainEncoder):
    def __init__(self, batch: int):
        super().__init__()
        self.batch = batch

    def query_features(self, images, batch_size):
        if len(self.calls) == self.batch:
            say(os.getpid())
        return super().query_features(images, batch_size)


def fill(raster: str, folder: str, batch: int) -> None:
    with Raster(raster) as opened:
        plan = make_plan("pyramid-32-0.25", opened.width, opened.height)
        encoder = Telling(batch)
        TileIndex.open(folder, opened, plan, encoder.encoder_fingerprint, encoder.shape).fill(encoder, batch=4)


if __name__ == "__main__":
    tiles.SYNC = 0  # every batch, so that all kills fall between different ones
    with rasterio.Env():  # registers GDAL's drivers, also for the forks
        pass
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            fill(*sys.argv[1:], int(line))
            break
        os.waitpid(child, 0)
        say("gone")
