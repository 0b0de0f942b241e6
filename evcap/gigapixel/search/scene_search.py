"""Test scenes, opened and indexed for scoring and for choosing thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from evcap.captioner import Captioner
from evcap.config import RetrievalConfig, assets_folder, load_preset
from evcap.encoding.keys import Encoder
from evcap.errors import EvcapError
from evcap.gigapixel.search.gallery import Gallery
from evcap.gigapixel.search.retrieval import Retriever
from evcap.gigapixel.search.towers import Tower, open_tower
from evcap.gigapixel.tiles.index import TileIndex
from evcap.gigapixel.tiles.plans import make_plan
from evcap.progress import Progress
from evcap.raster.raster import Raster

UNMEASURED = RetrievalConfig(math.inf, math.inf, math.inf, 0.0)  # nothing is found for sure


@dataclass(frozen=True)
class SceneConfig:
    """scenes: folder below the data folder, and which of its files; reference_plan: what ImageRAG's rule is tried on.

    trained, gallery: in place of the preset's.
    """

    scenes: str
    pattern: str = "*.json"
    output: str = "runs/eval/scenes"
    preset: str = "embedded"
    plan: str = "pyramid"
    reference_plan: str = "grid-10"
    trained: str | None = None
    gallery: str | None = None

    def paths(self, data: Path) -> list[Path]:
        """The scenes' JSON files. Raises EvcapError if there are none."""
        found = sorted((data / self.scenes).glob(self.pattern))
        if not found:
            raise EvcapError(f"there are no scenes {data / self.scenes / self.pattern}; data/make_mosaic.py makes them")
        return found


@dataclass(frozen=True)
class Searcher:
    """What finds things in scenes: a captioner without its language model, its tower, a gallery, and how they are used."""

    captioner: Captioner
    tower: Tower
    gallery: Gallery
    retriever: Retriever

    @classmethod
    def open(cls, config: SceneConfig) -> Searcher:
        """Raises EvcapError with one line when a part is missing, damaged or made for another model. A preset without
        thresholds is opened, too: scores need none."""
        settings = load_preset(config.preset)
        folder = config.gallery or assets_folder(config.preset, settings) / "gallery"
        if not Path(folder).is_dir():
            raise EvcapError(
                f"there is no gallery {folder}; memory/build_gallery.py makes one, name it as `gallery` in the config"
            )
        captioner = Encoder(config.preset, Path(config.trained) if config.trained else None).captioner
        tower = open_tower(captioner)
        gallery = Gallery.open(folder, tower.encoder_fingerprint)
        return cls(captioner, tower, gallery, Retriever(tower, [gallery], settings.retrieval or UNMEASURED))


def whole_index(raster: Raster, tower: Tower, plan: str, progress: Progress) -> TileIndex:
    """The complete index of a scene by a plan, made beside it if it is not there."""
    options = {"side": tower.image_size} if plan == "pyramid" else {}
    divided = make_plan(plan, raster.width, raster.height, **options)
    folder = raster.path.with_name(f"{raster.path.name}.{'evcap' if plan == 'pyramid' else plan}")
    index = TileIndex.open(folder, raster, divided, tower.encoder_fingerprint, tower.shape)
    index.fill(tower, progress=progress)
    return index
