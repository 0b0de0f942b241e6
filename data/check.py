"""Checks the data folder that training and scoring read: every photo is there and opens, has captions, is in one split.

    python data/check.py --data DIR

The expected layout and the format are in data/README.md. Exits with 1 when there is a problem.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from evcap.datasets import CaptionedImage, read_coco_captions, read_instances
from evcap.errors import EvcapError
from evcap.images import open_image

# Photos a split that the shipped model was trained, chosen and scored with. Other counts are shown, not refused.
SPLITS = {
    "flickr8k": {"train": 6000, "val": 1000, "test": 500},
    "ucm": {"train": 1680, "val": 210},
    "coco": {"train": 80, "val": 40},
}
WITH_OBJECTS = {"coco"}  # sets that also have instances_SPLIT.json
console = Console()


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


def main(
    data: Annotated[
        Path,
        typer.Option(exists=True, file_okay=False, help="Folder with flickr8k/, ucm/ and coco/: see data/README.md."),
    ],
) -> None:
    """Check every photo and caption under DATA and print one table."""
    table = Table("set", "split")
    for header in ("photos", "reference", "captions", "objects", "problems"):
        table.add_column(header, justify="right")
    problems: list[str] = []
    for name, splits in SPLITS.items():
        folder, seen = data / name, {}
        for split, reference in splits.items():
            images, objects, found = [], [], []
            try:
                images = read_coco_captions(folder / f"captions_{split}.json", folder / "images")
                if name in WITH_OBJECTS:
                    objects = read_instances(folder / f"instances_{split}.json", folder / "images")
            except EvcapError as error:
                found.append(str(error))
            found += problems_of(images, name, split, seen)
            counts = (len(images), reference, sum(len(i.captions) for i in images), len(objects), len(found))
            table.add_row(name, split, *(f"{count:,}" for count in counts))
            problems += (f"{name} {split}: {problem}" for problem in found)
    console.print(table)
    for problem in problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
