"""Tile indexes of several files at once, filled by the workers of a Ray cluster. Paths and windows travel to them, never
pixels, so every node must see the files under the same paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from evcap.encoding.keys import Encoder
from evcap.encoding.ray import map_by_actors, ray_session
from evcap.errors import EvcapError
from evcap.gigapixel.search.towers import open_tower
from evcap.gigapixel.tiles.index import BATCH, EMPTY, ENCODED, MISSING, TileIndex, encode_tiles
from evcap.gigapixel.tiles.plans import make_plan
from evcap.gigapixel.tiles.reading import read_ahead, squares
from evcap.progress import Progress, silent
from evcap.raster.raster import Raster, RasterError

BATCHES_A_TASK = 16  # what a task did is on disk only when all of it is done


def fill_by_ray(
    indexes: Sequence[TileIndex], encoder: Encoder, batch: int = BATCH, progress: Progress = silent
) -> list[str | None]:
    """Encode what is missing in all of these; the features are those of TileIndex.fill.

    Returns for each index why it could not be filled, in one line, or None. Raises EvcapError when Ray fails or an index
    cannot be written; what was stored until then stays.
    """
    errors: list[str | None] = [None] * len(indexes)
    writers, scenes, numbers = {}, [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    with ray_session(), ExitStack() as locks:
        for scene, index in enumerate(indexes):
            try:
                writers[scene] = locks.enter_context(index.writing())
                numbers += squares(index.plan, writers[scene].missing(), index.raster)
            except EvcapError as error:
                errors[scene] = str(error)
            scenes += [np.full(len(group), scene) for group in numbers[len(scenes) :]]
        columns = {"scene": np.concatenate(scenes), "number": np.concatenate(numbers)}
        if not len(columns["number"]):
            return errors
        arguments = encoder.recipe, [_described(index) for index in indexes], batch
        tasks = map_by_actors(columns, TileWorker, arguments, encoder.on_gpu, batch, BATCHES_A_TASK)
        with progress(len(columns["number"]), "tiles", "tile") as advance:
            for task in tasks:
                for scene in np.unique(task["scene"]).tolist():
                    rows = {name: column[task["scene"] == scene] for name, column in task.items()}
                    errors[scene] = next(filter(None, rows["error"]), errors[scene])
                    done, empty = rows["state"] == ENCODED, rows["state"] == EMPTY
                    writers[scene].store(rows["number"][done], rows["queries"][done], rows["number"][empty])
                advance(len(task["number"]))
    return errors


def _described(index: TileIndex) -> tuple:
    """What a worker needs to open the file and to know that it is the same."""
    raster = index.raster
    return os.fsencode(raster.path.absolute()), raster.bands, raster.given_stretch, raster.fingerprint(), index.plan.name


class TileWorker:
    """An actor of Ray: loads the preset once, then encodes tiles of these scenes, of which only the numbers come."""

    def __init__(self, recipe: tuple, scenes: list[tuple], batch: int):
        self.tower, self.scenes, self.batch = open_tower(Encoder.after(recipe).captioner), scenes, batch

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """scene, number (n,) -> beside them state (n,), queries (n,Q,W) float16, zeros if not encoded, and error (n,), a
        line that is empty unless the scene could not be read."""
        queries = np.zeros((len(rows["number"]), *self.tower.shape), np.float16)
        states, errors = np.full(len(queries), MISSING, np.uint8), np.full(len(queries), "", object)
        for scene in np.unique(rows["scene"]):
            here = np.flatnonzero(rows["scene"] == scene)
            row_of = dict(zip(rows["number"][here].tolist(), here.tolist(), strict=True))
            try:
                for encoded, found, empty in self._encode(self.scenes[scene], rows["number"][here]):
                    where = [row_of[number] for number in encoded.tolist()]
                    queries[where], states[where] = found, ENCODED
                    states[[row_of[number] for number in empty.tolist()]] = EMPTY
            except EvcapError as error:
                errors[here] = str(error)
        return rows | {"state": states, "queries": queries, "error": errors.astype(str)}

    def _encode(self, scene: tuple, numbers: np.ndarray):
        path, bands, stretch, fingerprint, plan = scene
        with Raster(Path(os.fsdecode(path)), bands, stretch) as raster:
            if raster.fingerprint() != fingerprint:
                raise RasterError(f"{raster.path} is another file here than where the run was started")
            divided = make_plan(plan, raster.width, raster.height)
            groups = squares(divided, numbers, raster)
            with closing(read_ahead(raster, divided, groups, self.tower.image_size)) as reading:
                yield from encode_tiles(reading, self.tower, self.batch)
