"""Test scenes, opened and indexed for scoring and for choosing thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evcap.errors import EvcapError
from evcap.uhr.plans import make_plan
from evcap.uhr.raster import Raster
from evcap.uhr.tiles import TileIndex
from evcap.uhr.towers import Tower


@dataclass(frozen=True)
class SceneConfig:
    """scenes: folder below the data folder, and which of its files; reference_plan: what ImageRAG's rule is tried on."""

    scenes: str
    pattern: str = "*.json"
    output: str = "runs/eval/scenes"
    preset: str = "embedded"
    plan: str = "pyramid"
    reference_plan: str = "grid-10"

    def paths(self, data: Path) -> list[Path]:
        """The scenes' JSON files. Raises EvcapError if there are none."""
        found = sorted((data / self.scenes).glob(self.pattern))
        if not found:
            raise EvcapError(f"there are no scenes {data / self.scenes / self.pattern}; data/make_mosaic.py makes them")
        return found


def whole_index(raster: Raster, tower: Tower, plan: str, quiet: bool) -> TileIndex:
    """The complete index of a scene by a plan, made beside it if it is not there."""
    options = {"side": tower.image_size} if plan == "pyramid" else {}
    divided = make_plan(plan, raster.width, raster.height, **options)
    folder = raster.path.with_name(f"{raster.path.name}.{'evcap' if plan == 'pyramid' else plan}")
    index = TileIndex.open(folder, raster, divided, tower.encoder_fingerprint, tower.shape)
    index.fill(tower, quiet=quiet)
    return index
