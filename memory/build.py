"""Build a visual-name memory from named images (EVCap, arXiv 2311.15879, section 3.1; `per_name` of them at most).

    python memory/build.py memory/configs/embedded.yaml --data DIR --output FOLDER [--trained FILE]

Three kinds of source: boxes with a class (each crop is an image of its class), captioned photos whose captions agree on
an object name, and scenes with a label. A name's images are drawn at random from all sources together.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from tqdm import tqdm

from evcap.build import build_model
from evcap.config import assets_folder, load_preset, load_yaml
from evcap.console import DataFolder, NoBars, command
from evcap.datasets import read_coco_captions, read_instances, read_lvis_names
from evcap.errors import EvcapError
from evcap.images import open_image
from evcap.memory import VisualNameMemory
from evcap.predictor import Captioner
from evcap.vocabulary import NameFinder, clean_name


@dataclass(frozen=True)
class Config:
    """What goes into a memory. Paths are relative to --data."""

    names: str  # list of object names, one a line, synonyms after "/"
    boxes: list[str] = field(default_factory=list)  # sets with instances_train.json
    captions: list[str] = field(default_factory=list)  # sets with captions_train.json
    scenes: list[str] = field(default_factory=list)  # sets whose images carry a scene label
    agree: int = 3  # captions of a photo that must say the name
    least: int = 1  # photos whose captions must agree on a name that no box and no scene has
    exclude: list[str] = field(default_factory=list)  # names that mostly mean something else in captions
    spelling: dict[str, str] = field(default_factory=dict)  # how labels are said: baseballdiamond -> baseball diamond
    per_name: int = 10
    least_side: int = 48  # pixels; smaller boxes are left out
    margin: float = 0.1  # of the box's size, added around it
    preset: str = "embedded"
    batch: int = 32
    seed: int = 0


@dataclass(frozen=True)
class NamedImage:
    """One candidate entry: a picture, or the part of it inside a box (x1,y1,x2,y2 in pixels), and its name."""

    name: str
    path: Path
    source: str
    box: tuple[float, float, float, float] | None = None

    def open(self) -> Image.Image:
        image = open_image(self.path)
        if self.box is None:
            return image
        x1, y1, x2, y2 = self.box
        return image.crop((round(max(0, x1)), round(max(0, y1)), round(min(image.width, x2)), round(min(image.height, y2))))


def box_candidates(config: Config, data: Path) -> Iterator[NamedImage]:
    for name in config.boxes:
        for item in read_instances(data / name / "instances_train.json", data / name / "images"):
            x1, y1, x2, y2 = item.box
            if item.iscrowd or min(x2 - x1, y2 - y1) < config.least_side:
                continue
            dx, dy = config.margin * (x2 - x1), config.margin * (y2 - y1)
            box = (x1 - dx, y1 - dy, x2 + dx, y2 + dy)
            yield NamedImage(clean_name(item.name), item.path, f"{name} box", box)


def caption_candidates(config: Config, data: Path, labels: set[str]) -> Iterator[NamedImage]:
    """Photos whose captions agree on a name of the list or on one of `labels`, the names that boxes and scenes have."""
    synonyms = {clean_name(s.split("(")[0]) for row in read_lvis_names(data / config.names) for s in row}
    finder = NameFinder(sorted((synonyms | labels) - {""} - {clean_name(e) for e in config.exclude}))
    for name in config.captions:
        for record in read_coco_captions(data / name / "captions_train.json", data / name / "images"):
            said = Counter(n for caption in record.captions for n in {m.name for m in finder.find(caption)})
            for noun, count in sorted(said.items()):
                if count >= config.agree:
                    yield NamedImage(noun, record.path, f"{name} captions")


def scene_candidates(config: Config, data: Path) -> Iterator[NamedImage]:
    for name in config.scenes:
        for record in read_coco_captions(data / name / "captions_train.json", data / name / "images"):
            if record.scene:
                yield NamedImage(clean_name(record.scene), record.path, f"{name} scene")


def all_candidates(config: Config, data: Path) -> list[NamedImage]:
    """Candidates of all three sources under the names they are said by, without the excluded and the too rare ones."""
    excluded = {clean_name(e) for e in config.exclude}
    labelled = [*box_candidates(config, data), *scene_candidates(config, data)]
    labelled = [replace(c, name=config.spelling.get(c.name, c.name)) for c in labelled if c.name not in excluded]
    labels = {c.name for c in labelled}
    captioned = list(caption_candidates(config, data, labels))
    photos = Counter(c.name for c in captioned)
    return labelled + [c for c in captioned if c.name in labels or photos[c.name] >= config.least]


def choose(candidates: list[NamedImage], per_name: int, seed: int) -> list[NamedImage]:
    """At most `per_name` images a name, drawn at random, names in alphabetical order."""
    by_name = defaultdict(list)
    for item in candidates:
        by_name[item.name].append(item)
    draw = random.Random(seed)
    return [i for name in sorted(by_name) for i in draw.sample(by_name[name], min(per_name, len(by_name[name])))]


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see memory/configs/.")],
    data: DataFolder,
    output: Annotated[Path, typer.Option(help="Folder of the new memory.")],
    trained: Annotated[Path | None, typer.Option(help="Trained tensors to encode with, if not the shipped ones.")] = None,
    quiet: NoBars = False,
) -> None:
    config = load_yaml(config_path, Config)
    candidates = all_candidates(config, data)
    chosen = choose(candidates, config.per_name, config.seed)
    if not chosen:
        raise EvcapError(f"{config_path}: the sets hold no picture of any name; see `boxes`, `captions`, `scenes` and `names`")
    preset = load_preset(config.preset)
    shipped = assets_folder(config.preset, preset) / "trained.safetensors"
    captioner = Captioner(build_model(preset, trained or shipped))
    keys = []
    with tqdm(total=len(chosen), desc="memory", unit="img", disable=quiet) as bar:
        for start in range(0, len(chosen), config.batch):
            batch = chosen[start : start + config.batch]
            keys.append(captioner.keys([item.open() for item in batch], config.batch))
            bar.update(len(batch))
    memory = VisualNameMemory.build(
        np.concatenate(keys).astype(np.float16),
        [item.name for item in chosen],
        [item.source for item in chosen],
        [item.path.name for item in chosen],
        captioner.encoder_fingerprint,
    )
    memory.save(output)
    print(f"{output}: {len(chosen)} entries, {len(memory.counts())} names, from {len(candidates)} candidates")


if __name__ == "__main__":
    typer.run(command(main))
