"""Holds out a share of a set's training images: a data folder for a model that must not have seen them.

    python data/hold_out.py HELD --data DIR

HELD is DIR, by links, but for HELD/ucm: a fifth of each scene's train images are its val split, the others its train split.
The val split of DIR is in neither. How tiles are compared was chosen on such images (docs/big-images.md).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command
from evcap.cli.options import DataFolder
from evcap.errors import EvcapError
from evcap.files import write_text
from evcap.text_files import read_json


def draw(images: list[dict], share: float, seed: int) -> set[int]:
    """The ids held out: of each scene its share, rounded down. Images without a scene are all of one."""
    scenes = defaultdict(list)
    for image in images:
        scenes[image.get("scene", "")].append(image["id"])
    chance = random.Random(seed)
    return {i for scene in sorted(scenes) for i in chance.sample(sorted(scenes[scene]), int(len(scenes[scene]) * share))}


def part(content: dict, ids: set[int]) -> str:
    """A captions file of these images only."""
    images = [image for image in content["images"] if image["id"] in ids]
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    return json.dumps(content | {"images": images, "annotations": annotations}) + "\n"


def main(
    output: Annotated[Path, typer.Argument(metavar="HELD", help="The data folder to make.")],
    data: DataFolder,
    name: Annotated[str, typer.Option("--set", help="Whose train images are held out.")] = "ucm",
    share: Annotated[float, typer.Option(min=0.01, max=0.99, help="Of the images of each scene.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
) -> None:
    source = data / name / "captions_train.json"
    try:
        content = read_json(source)
        ids = {image["id"] for image in content["images"]}
        held = draw(content["images"], share, seed)
    except (ValueError, KeyError, TypeError):
        raise EvcapError(f"{source} is not a COCO captions file") from None
    if (output / name).exists():
        raise EvcapError(f"{output / name} is there already; name another folder, or remove it first")
    (output / name).mkdir(parents=True)
    for path in (path for path in data.iterdir() if path.name != name and not (output / path.name).exists()):
        (output / path.name).symlink_to(path.resolve())
    (output / name / "images").symlink_to((data / name / "images").resolve())
    for split, those in (("train", ids - held), ("val", held)):
        write_text(output / name / f"captions_{split}.json", part(content, those))
    print(f"{output}: {len(held)} of {len(ids)} train images of {name} held out")


if __name__ == "__main__":
    typer.run(command(main))
