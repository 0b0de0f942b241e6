"""The tile index: query features of the tiles of a plan, kept in a folder, filled in any order and in any number of runs."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from evcap.errors import EvcapError
from evcap.gigapixel.tiles.files import check_manifest, create, discard, remedy, saying
from evcap.gigapixel.tiles.plans import Plan
from evcap.gigapixel.tiles.reading import Tiles, read_ahead, squares
from evcap.progress import Progress, silent
from evcap.raster.raster import Raster, RasterError
from evcap.row_store import read_rows, runs, write_rows

if TYPE_CHECKING:
    from evcap.gigapixel.search.towers import Tower

MISSING, ENCODED, EMPTY = 0, 1, 2
SYNC = 1.0  # seconds after which what was encoded is on disk
MOST_TILES = 5_000_000  # of an index: 120 GB, of an image 400,000 pixels wide and high
BATCH = 16  # tiles that go through the encoder together; 32 need 0.4 GB more with the embedded preset


@dataclass(frozen=True)
class Filled:
    """How many tiles a run encoded, how many it found to be empty, and out of how many tiles these are."""

    encoded: int
    empty: int
    of: int


Batch = tuple[np.ndarray, np.ndarray | None, np.ndarray]
NONE = np.zeros(0, np.int64)


def encode_tiles(read: Iterable[Tiles], encoder: Tower, batch: int) -> Iterator[Batch]:
    """Numbers (n,) int64 of encoded tiles with their query features (n,Q,W) float16, or numbers (m,) of empty tiles.

    The encoder always gets `batch` images, at last some twice: its rounding depends on how many there are. So features do
    not depend on where a run was interrupted, nor on who encodes which tiles.
    """

    def encoded(now: list[tuple[int, np.ndarray]]) -> Batch:
        pictures = [Image.fromarray(pixels) for _, pixels in now]
        pictures += pictures[-1:] * (batch - len(now))
        queries = encoder.query_features(pictures, batch)[: len(now)].to(torch.float16).numpy()
        return np.array([number for number, _ in now], np.int64), queries, NONE

    waiting: list[tuple[int, np.ndarray]] = []
    for tiles in read:
        if len(tiles.empty):
            yield NONE, None, tiles.empty
        waiting += zip(tiles.numbers.tolist(), tiles.pixels, strict=True)
        while len(waiting) >= batch:
            now, waiting = waiting[:batch], waiting[batch:]
            yield encoded(now)
        waiting = [(number, pixels.copy()) for number, pixels in waiting]  # what was read with them can go
    if waiting:
        yield encoded(waiting)


class TileIndex:
    """A folder: manifest.json, features.f16 with the query features of tile n at n times their size, and states.u8 with a byte
    for each tile. Where nothing was encoded the files have holes, which take no space.

    plan: whose tiles they are. states (N,) uint8: MISSING, ENCODED or EMPTY (nothing in it is valid).
    shape: (Q,W) of the features of a tile. They are read and written, not mapped, so that main memory does not grow with them.
    """

    def __init__(self, folder: Path, raster: Raster, plan: Plan, encoder: str, shape: tuple[int, int]):
        """Use `open`."""
        self.folder, self.raster, self.plan, self.encoder, self.shape = folder, raster, plan, encoder, shape
        self._row = int(np.prod(shape)) * 2  # bytes
        self.states = self._read_states()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        raster: Raster,
        plan: Plan,
        encoder: str,
        shape: tuple[int, int] = (32, 384),
        anew: bool = False,
    ) -> TileIndex:
        """The index in a folder, an empty one if there is none yet.

        encoder: fingerprint of what makes the features, of shape (Q,W). anew: in place of an index that is there, whatever it
        is of. Raises EvcapError, one line, for more than MOST_TILES, for the index of another file, plan or encoder, for one
        that is damaged, and for a folder that cannot be written.
        """
        folder = Path(folder)
        if len(plan) > MOST_TILES:
            raise RasterError(
                f"{raster.path}: {plan.width:,} x {plan.height:,} pixels are {len(plan):,} tiles, more than the {MOST_TILES:,} "
                "that an index holds; cut a part out (gdal_translate -srcwin)"
            )
        told = {"raster": raster.fingerprint(), "bands": list(raster.bands), "plan": plan.name, "encoder": encoder}
        told |= {"stretch": list(raster.stretch) if raster.stretch else None}
        told |= {"file": raster.path.name, "size": [plan.width, plan.height], "tiles": len(plan), "shape": list(shape)}
        try:
            if anew and folder.is_dir() and any(folder.iterdir()):
                discard(folder)
            if not (folder / "manifest.json").exists():
                create(folder, told)
            check_manifest(folder, told, raster)
        except OSError as error:
            raise EvcapError(f"cannot use {folder} as a tile index: {error.strerror}") from None
        return cls(folder, raster, plan, encoder, tuple(shape))

    def _read_states(self) -> np.ndarray:
        features, states = self.folder / "features.f16", self.folder / "states.u8"
        try:
            sizes = features.stat().st_size, states.stat().st_size
            found = np.fromfile(states, np.uint8)
        except OSError as error:
            raise EvcapError(
                f"cannot read {error.filename or states}: {error.strerror}; {remedy(self.folder, self.raster)}"
            ) from None
        if sizes != (len(self.plan) * self._row, len(self.plan)) or (len(found) and found.max() > EMPTY):
            raise EvcapError(f"{self.folder} does not hold {len(self.plan):,} tiles; {remedy(self.folder, self.raster)}")
        return found

    def numbers(self) -> np.ndarray:
        """(n,) int64: the encoded tiles, sorted."""
        return np.flatnonzero(self.states == ENCODED)

    def queries(self, numbers: np.ndarray) -> np.ndarray:
        """(n,Q,W) float16: the query features of these tiles, in this order. ValueError for tiles that are not encoded."""
        numbers = np.asarray(numbers, np.int64)
        if (self.states[numbers] != ENCODED).any():
            raise ValueError("some of these tiles are not encoded")
        rows = np.empty((len(numbers), *self.shape), np.float16)
        path = self.folder / "features.f16"
        try:
            with path.open("rb", buffering=0) as file:
                for start, stop in runs(numbers):
                    read_rows(file.fileno(), rows[start:stop], int(numbers[start]) * self._row)
        except OSError as error:
            raise EvcapError(f"cannot read {path}: {error.strerror}") from None
        return rows

    def chunks(self, count: int = 1024) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(numbers (n,), queries (n,Q,W) float16) of all encoded tiles, at most `count` at a time (of 25 kB each)."""
        numbers = self.numbers()
        for start in range(0, len(numbers), count):
            yield numbers[start : start + count], self.queries(numbers[start : start + count])

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Nobody else writes meanwhile; what others wrote before is known then. Raises EvcapError if somebody does."""
        with ExitStack() as files:
            with saying(self.folder):
                names = "features.f16", "states.u8"
                features, states = (files.enter_context((self.folder / name).open("r+b", buffering=0)) for name in names)
                try:
                    fcntl.flock(states, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise EvcapError(f"another process is writing to {self.folder}; wait until it is done") from None
            self.states[:] = self._read_states()
            writer = Writer(self, features.fileno(), states.fileno())
            try:
                yield writer
            finally:
                writer.flush()

    def fill(
        self, encoder: Tower, numbers: np.ndarray | None = None, batch: int = BATCH, progress: Progress = silent
    ) -> Filled:
        """Encode what is missing of these tiles (None: of all). May be killed: the next run goes on where this one was a second
        before.

        Raises EvcapError, one line, when the file cannot be read or the index not be written.
        """
        if encoder.encoder_fingerprint != self.encoder:
            raise EvcapError(f"{self.folder} is the index of another encoder; {remedy(self.folder, self.raster)}")
        self.raster.check_unchanged()
        with self.writing() as writer:
            before, todo = self.counts(), writer.missing(numbers)
            groups = squares(self.plan, todo, self.raster)
            reading = read_ahead(self.raster, self.plan, groups, encoder.image_size)
            with closing(reading), progress(len(todo), "tiles", "tile") as advance:
                for encoded, queries, empty in encode_tiles(reading, encoder, batch):
                    writer.store(encoded, queries, empty)
                    advance(len(encoded) + len(empty))
        after, asked = self.counts(), self.plan if numbers is None else numbers
        return Filled(after[ENCODED] - before[ENCODED], after[EMPTY] - before[EMPTY], len(asked))

    def counts(self) -> list[int]:
        """How many tiles are MISSING, ENCODED and EMPTY."""
        return np.bincount(self.states, minlength=3).tolist()


class Writer:
    """Stores tiles of an index that is locked, see TileIndex.writing. `states` follow after SYNC seconds, and at the end."""

    def __init__(self, index: TileIndex, features: int, states: int):
        self._index, self._features, self._states = index, features, states
        self._stored, self._synced = [], time.monotonic()

    def missing(self, numbers: np.ndarray | None = None) -> np.ndarray:
        """(n,) int64, sorted: those of these tiles (None: of all) that are to be encoded. Those of which the file tells that
        nothing is in them are marked."""
        index = self._index
        todo = np.arange(len(index.states)) if numbers is None else np.unique(np.asarray(numbers, np.int64))
        todo = todo[index.states[todo] == MISSING]
        empty = index.raster.empty_boxes(index.plan.boxes(todo))
        self._mark(todo[empty], EMPTY)
        return todo[~empty]

    def store(self, numbers: np.ndarray, queries: np.ndarray | None, empty: np.ndarray) -> None:
        """Features (n,Q,W) float16 of tiles, None if n is 0, and tiles (m,) that are empty. Raises EvcapError if the disk is
        full."""
        with saying(self._index.folder):
            for start, stop in runs(numbers):
                rows = np.ascontiguousarray(queries[start:stop])
                write_rows(self._features, rows, int(numbers[start]) * self._index._row)
        self._stored += [(numbers, ENCODED), (empty, EMPTY)]
        if time.monotonic() - self._synced >= SYNC:
            self.flush()

    def flush(self) -> None:
        """What is stored is on disk, with its marks."""
        with saying(self._index.folder):
            os.fdatasync(self._features)  # before the marks: whatever ends this machine leaves no mark without features
        stored, self._stored = self._stored, []
        for numbers, state in stored:
            self._mark(numbers, state)
        self._synced = time.monotonic()

    def _mark(self, numbers: np.ndarray, state: int) -> None:
        with saying(self._index.folder):
            for start, stop in runs(numbers):
                write_rows(self._states, np.full(stop - start, state, np.uint8), int(numbers[start]))
                self._index.states[numbers[start:stop]] = state
