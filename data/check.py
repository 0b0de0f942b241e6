"""Checks the data folder that training and scoring read: every photo is there and opens, has captions, is in one split.

    python data/check.py --data DIR            # the sets that are there
    python data/check.py --data DIR nocaps     # only these, and it is a problem if they are not

The expected layout and the format are in data/README.md. Exits with 1 when there is a problem.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from evcap.cli.console import command
from evcap.datasets.benchmarks import BENCHMARKS
from evcap.datasets.coco import CaptionedImage, read_coco_captions, read_instances
from evcap.datasets.phrases import read_class_boxes, read_phrases
from evcap.errors import EvcapError
from evcap.images.opening import open_image

# Photos a split that the shipped model was trained, chosen and scored with. Other counts are shown, not refused.
SPLITS = {
    "flickr8k": {"train": 6000, "val": 1000, "test": 500},
    "ucm": {"train": 1680, "val": 210},
    "coco": {"train": 80, "val": 40},
    "coco_plus": {"train": 2088, "val": 241, "test": 171},
}
# Scores on other photos than a benchmark has could not be compared. One may be converted for a single split.
SETS = SPLITS | {name: {split: s.pictures for split, s in splits.items()} for name, splits in BENCHMARKS.items()}
# sets that also have boxes or phrases: their file of a split below DATA, and its reader
WITH_OBJECTS = {
    "flickr8k": ("flickr_entities/entities_{}.json", read_phrases),
    "coco": ("coco/instances_{}.json", read_instances),
    "coco_plus": ("coco_plus/boxes_{}.json", read_class_boxes),
}
WITHOUT_CAPTIONS = {("nocaps", "test")}
console = Console()


def is_there(data: Path, name: str, split: str) -> bool:
    """Whether a split is to be checked: all splits of a training set's folder, those of a benchmark that were converted."""
    return (data / name).is_dir() and (name in SPLITS or (data / name / f"captions_{split}.json").exists())


def problems_of(images: list[CaptionedImage], name: str, split: str, seen: dict[Path, str]) -> Iterator[str]:
    """What is wrong with the photos of one split, a line each. `seen` (photo -> its split) grows by these photos."""
    for image in track(images, f"{name} {split}", console=console, transient=True, disable=not console.is_terminal):
        if not all(caption.strip() for caption in image.captions):
            yield f"{image.path.name} has an empty caption"
        if other := seen.get(image.path):
            yield f"{image.path.name} stands in {other} and in {split}"
        seen[image.path] = split
        try:
            open_image(image.path)
        except EvcapError as error:
            yield str(error)


def check_split(data: Path, name: str, split: str, seen: dict[Path, str]) -> tuple[list[int], list[str]]:
    """The counts of one row of the table, and what is wrong with the split, a line each."""
    folder, reference = data / name, SETS[name][split]
    images, objects, found = [], [], []
    try:
        captioned = (name, split) not in WITHOUT_CAPTIONS
        images = read_coco_captions(folder / f"captions_{split}.json", folder / "images", captioned)
        if name in WITH_OBJECTS:
            file, read = WITH_OBJECTS[name]
            if (data / file.format(split)).is_file():
                objects = read(data / file.format(split), folder / "images")
        if name in BENCHMARKS and len(images) != reference:
            found.append(f"there are {len(images):,} photos, the benchmark has {reference:,}")
    except EvcapError as error:
        found.append(str(error))
    found += problems_of(images, name, split, seen)
    return [len(images), reference, sum(len(i.captions) for i in images), len(objects), len(found)], found


def main(
    data: Annotated[
        Path,
        typer.Option(exists=True, file_okay=False, help="Folder with a folder for each set: see data/README.md."),
    ],
    sets: Annotated[list[str] | None, typer.Argument(metavar="[SET]...", help=f"Of {', '.join(SETS)}.")] = None,
) -> None:
    """Check every photo and caption under DATA and print one table."""
    table = Table("set", "split")
    for header in ("photos", "reference", "captions", "objects", "problems"):
        table.add_column(header, justify="right")
    problems = [f"there is no set '{name}', but {', '.join(SETS)}" for name in sets or [] if name not in SETS]
    asked = [name for name in SETS if not sets or name in sets]
    there = {name: [split for split in SETS[name] if is_there(data, name, split)] for name in asked}
    absent = [name for name in asked if not there[name]]
    for name in asked:
        seen: dict[Path, str] = {}
        for split in there[name]:
            counts, found = check_split(data, name, split, seen)
            table.add_row(name, split, *(f"{count:,}" for count in counts))
            problems += (f"{name} {split}: {problem}" for problem in found)
    if absent and (sets or absent == asked):
        problems += (f"{name}: there is no {data / name} with captions_SPLIT.json" for name in absent)
    elif absent:
        console.print(f"not there: {', '.join(absent)}", highlight=False, soft_wrap=True)
    console.print(table)
    for problem in problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command(main))
