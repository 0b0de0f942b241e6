"""Build a visual-name memory from named images (EVCap, arXiv 2311.15879, section 3.1; `per_name` of them at most).

    python memory/build.py memory/configs/embedded.yaml --data DIR --output FOLDER [--trained FILE] [--engine ray]

Sources: boxes with a class (each crop is an image of its class), boxes with phrases (of the object name that a phrase is
about), captioned photos whose captions agree on an object name, scenes with a label, LVIS, folders of named images, and CSV
files. A name's images are drawn at random from all sources together. A run that was killed goes on where it was; images that
do not open are reported and left out.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command, complain, report
from evcap.cli.options import DataFolder, EngineChoice, NoBars, Trained
from evcap.cli.progress import shown
from evcap.datasets.coco import read_coco_captions, read_lvis, read_name_list
from evcap.datasets.named_images import Box, NamedImage, choose, distinct, read_named_csv, read_named_folders
from evcap.datasets.phrases import read_class_boxes, read_phrases
from evcap.encoding.keys import Encoder, save_memory
from evcap.encoding.ray import Engine
from evcap.errors import EvcapError
from evcap.memory.names import NameFinder, clean_name, spoken_name
from evcap.yaml_files import load_yaml


@dataclass(frozen=True)
class Config:
    """What goes into a memory. Paths are relative to --data."""

    names: str | None = None  # list of object names to find in captions and phrases, one a line, synonyms after "/"
    words: list[str] = field(default_factory=list)  # further names to find in them
    boxes: dict[str, str] = field(default_factory=dict)  # files of COCO boxes: the folders of their images
    phrases: dict[str, str] = field(default_factory=dict)  # files of Flickr30k Entities: the folders of their images
    captions: list[str] = field(default_factory=list)  # sets with captions_train.json
    scenes: list[str] = field(default_factory=list)  # sets whose images carry a scene label
    lvis: list[str] = field(default_factory=list)  # annotation files of LVIS v1 or v0.5
    lvis_images: str = "coco"  # folder of their images, with or without the folders train2017 and val2017
    lvis_crops: bool = False  # the largest object of the name, not the whole image
    folders: list[str] = field(default_factory=list)  # folders that hold a folder of images for each name
    csv: list[str] = field(default_factory=list)  # files with columns image,name and, for boxes, x1,y1,x2,y2
    agree: int = 3  # captions of a photo that must say the name
    least: int = 1  # images that a name of captions and phrases must have, unless a box or a scene has it
    exclude: list[str] = field(default_factory=list)  # names that mostly mean something else in captions
    spelling: dict[str, str] = field(default_factory=dict)  # how labels are said: baseballdiamond -> baseball diamond
    per_name: int = 10
    least_side: int = 48  # pixels; smaller boxes are left out
    margin: float = 0.1  # of the box's size, added around it
    preset: str = "embedded"
    batch: int = 32
    seed: int = 0


def cropped(config: Config, name: str, path: Path, box: Box, source: str) -> NamedImage | None:
    """A part of an image as an image of its own, with a margin; None for a small one."""
    x1, y1, x2, y2 = box
    if min(x2 - x1, y2 - y1) < config.least_side:
        return None
    dx, dy = config.margin * (x2 - x1), config.margin * (y2 - y1)
    return NamedImage(clean_name(name), path, source, (x1 - dx, y1 - dy, x2 + dx, y2 + dy))


def box_candidates(config: Config, data: Path) -> Iterator[NamedImage]:
    for file, images in config.boxes.items():
        source = f"{Path(images).parts[0]} box"
        for region in read_class_boxes(data / file, data / images):
            if item := cropped(config, region.phrases[0], region.path, region.box, source):
                yield item


def phrase_candidates(config: Config, data: Path, finder: NameFinder) -> Iterator[NamedImage]:
    """Each region once for each name that one of its phrases is about."""
    for file, images in config.phrases.items():
        source = f"{Path(images).parts[0]} phrase"
        for region in read_phrases(data / file, data / images):
            for name in sorted({finder.about(phrase) for phrase in region.phrases} - {""}):
                if item := cropped(config, name, region.path, region.box, source):
                    yield item


def lvis_candidates(config: Config, data: Path) -> Iterator[NamedImage]:
    """Each image once for each name it is annotated with, names as they are said (`spoken_name`).

    bow_(weapon) and bow_(decorative_ribbons) are one name, as a caption says "bow" of both: 1,198 for LVIS v1's 1,203.
    """
    for file in config.lvis:
        source = Path(file).stem
        items = [replace(i, name=spoken_name(i.name)) for i in read_lvis(data / file, data / config.lvis_images)]
        if config.lvis_crops:
            candidates = [cropped(config, i.name, i.path, i.box, source) for i in items if not i.iscrowd]
        else:
            candidates = [NamedImage(item.name, item.path, source) for item in items]
        yield from dict.fromkeys(filter(None, candidates))  # both senses of a word may be in one image


def folder_candidates(config: Config, data: Path) -> Iterator[NamedImage]:
    for folder in config.folders:
        yield from read_named_folders(data / folder, Path(folder).name, complain)


def name_finder(config: Config, data: Path, labels: set[str]) -> NameFinder:
    """Finds the names of the list and `labels`, the names that boxes and scenes have, in captions and phrases."""
    if not (config.names or config.words):
        raise EvcapError(
            "the config reads `captions` or `phrases` and so must give names to find in them: `names`, a file, or `words`"
        )
    listed = {s.split("(")[0] for row in read_name_list(data / config.names) for s in row} if config.names else set()
    wanted = {clean_name(word) for word in listed | set(config.words)}
    return NameFinder(sorted((wanted | labels) - {""} - {clean_name(e) for e in config.exclude}))


def caption_candidates(config: Config, data: Path, finder: NameFinder) -> Iterator[NamedImage]:
    """Photos whose captions agree on a name."""
    for name in config.captions:
        for record in read_coco_captions(data / name / "captions_train.json", data / name / "images"):
            captions = [unicodedata.normalize("NFC", caption) for caption in record.captions]
            said = Counter(n for caption in captions for n in {m.name for m in finder.find(caption)})
            for noun, count in sorted(said.items()):
                if count >= config.agree:
                    yield NamedImage(noun, record.path, f"{name} captions")


def scene_candidates(config: Config, data: Path) -> Iterator[NamedImage]:
    for name in config.scenes:
        for record in read_coco_captions(data / name / "captions_train.json", data / name / "images"):
            if record.scene:
                yield NamedImage(clean_name(record.scene), record.path, f"{name} scene")


def all_candidates(config: Config, data: Path) -> list[NamedImage]:
    """Candidates of all sources under the names they are said by, without the excluded and the too rare ones."""
    excluded = {clean_name(e) for e in config.exclude}
    readers = (box_candidates, scene_candidates, lvis_candidates, folder_candidates)
    labelled = [candidate for reader in readers for candidate in reader(config, data)]
    labelled += [item for file in config.csv for item in read_named_csv(data / file, Path(file).stem)]
    labelled = [replace(c, name=config.spelling.get(c.name, c.name)) for c in labelled if c.name not in excluded]
    labels = {c.name for c in labelled}
    if not (config.captions or config.phrases):
        return labelled
    finder = name_finder(config, data, labels)
    found = [*caption_candidates(config, data, finder), *phrase_candidates(config, data, finder)]
    images = Counter(name for name, _ in {(c.name, c.path) for c in found})
    return labelled + [c for c in found if c.name in labels or images[c.name] >= config.least]


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see memory/configs/.")],
    data: DataFolder,
    output: Annotated[Path, typer.Option(help="Folder of the new memory; FOLDER.part keeps what is done until it is whole.")],
    trained: Trained = None,
    engine: EngineChoice = Engine.local,
    quiet: NoBars = False,
) -> None:
    """Build a memory from named images: folders, CSV files, LVIS, boxes, phrases, captions, scenes."""
    config = load_yaml(config_path, Config)
    if min(config.per_name, config.batch) < 1:
        raise EvcapError(f"{config_path}: per_name and batch must be at least 1")
    candidates = all_candidates(config, data)
    chosen = choose(candidates, config.per_name, config.seed)
    if not chosen:
        raise EvcapError(
            f"{config_path}: the sets hold no image of any name; see `boxes`, `phrases`, `captions`, `names`, `scenes`, "
            "`lvis`, `folders` and `csv`"
        )
    memory, failures = save_memory(Encoder(config.preset, trained), chosen, output, config.batch, engine, shown(quiet))
    print(f"{output}: {len(memory)} entries, {len(memory.counts())} names, from {len(candidates)} candidates")
    report(failures, len(distinct(chosen)))
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command(main))
