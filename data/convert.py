"""Brings a set that you downloaded into the project's format: files in COCO's format beside a link to the images.

    python data/convert.py nocaps --source DOWNLOADS --data DIR
    python data/convert.py refcocog --source DOWNLOADS --data DIR

SET is one of captions (coco-karpathy, flickr30k, nocaps, whoops) or of regions (refcocog, visual-genome, ovad,
flickr30k-entities); data/README.md says where to get each. The annotation files and the images, unpacked, may lie anywhere
below DOWNLOADS. Ids, numbers of images and captions, the images' files and, where archives with a known MD5 are still
there, these are checked; a split that is not as it should be is not written. Images are not copied; where a file has another
size than its boxes were drawn in, these are brought to it. Exits with 1 when there is a problem.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from evcap.cli.console import command, complain
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import tqdm
from evcap.datasets.benchmarks import ARCHIVES, BENCHMARKS, Files, read_rows
from evcap.datasets.region_sets import REGION_SETS, Published, read_published
from evcap.errors import EvcapError
from evcap.files import write_text
from evcap.text_files import one_line

SETS = BENCHMARKS | REGION_SETS
Set = StrEnum("Set", {name: name for name in SETS})
COCO_2014 = re.compile(r"^COCO_(train|val)2014_")
Made = tuple[dict, list[str]]  # the content of a file, and what it holds, in words


def check_archive(path: Path, expected: str, quiet: bool) -> None:
    """Compare the MD5 of an archive."""
    digest = hashlib.md5()
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=quiet) as bar,
    ):
        while block := file.read(1 << 24):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != expected:
        raise EvcapError(f"{path} is damaged or another file: its MD5 is {digest.hexdigest()}, expected {expected}")


def pictures_folder(own: Path, images: Path) -> Path:
    """Where images are looked for: the set's `own` folder if it is one, else `images`, to which it is or becomes a link."""
    if own.is_symlink() and own.resolve() != images.resolve():
        raise EvcapError(f"{own} is a link to {own.resolve()}: remove it, or give --images that folder")
    return own if own.is_dir() and not own.is_symlink() else images


def find_all(names: Iterable[str], images: Files) -> dict[str, Path]:
    """{name: its file}. COCO 2017 calls COCO_train2014_000000000009.jpg 000000000009.jpg, which is taken for it."""
    places = {name: images.find(name) or images.find(COCO_2014.sub("", name)) for name in names}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        where = f"missing below {images.folder} (are the archives unpacked?)"
        raise EvcapError(f"{len(missing):,} images are {where}, the first is {missing[0]}")
    return places


def captions_format(name: str, split: str, files: Files, images: Files) -> Made:
    """A split as a COCO captions file, whose file names are relative to the folder of `images`."""
    rows = read_rows(name, split, files)
    places = find_all([row.file for row in rows], images)
    pictures = [{"id": r.id, "file_name": places[r.file].relative_to(images.folder).as_posix(), **r.fields} for r in rows]
    captions = [{"image_id": row.id, "caption": caption} for row in rows for caption in row.captions]
    captions = [{"id": number, **caption} for number, caption in enumerate(captions)]
    domains = Counter(row.fields["domain"] for row in rows if row.fields)
    counts = [f"{len(rows):,} images", f"{len(captions):,} captions"]
    counts += [f"{count:,} {domain}" for domain, count in sorted(domains.items())]
    return {"images": pictures, "annotations": captions}, counts


def regions_format(name: str, split: str, files: Files, images: Files) -> Made:
    """A split as a file of regions, whose boxes are in pixels of the files below the folder of `images`."""
    found = read_published(name, split, files)
    sizes = {region.image_id: (region.path.name, region.size) for region in found.regions}
    places = find_all([file for file, _ in sizes.values()], images)
    pictures = {}
    for key, (file, size) in sizes.items():
        now = size_of(places[file])
        picture = {"id": key, "file_name": places[file].relative_to(images.folder).as_posix()}
        picture |= dict(zip(("width", "height"), now, strict=True))
        pictures[key] = picture | ({} if now == size else dict(zip(("orig_width", "orig_height"), size, strict=True)))
    content = {"images": list(pictures.values()), "annotations": annotations(found, pictures)}
    if found.attributes:
        content["attributes"] = found.attributes
    resized = sum("orig_width" in picture for picture in pictures.values())
    phrases = sum(len(region.phrases) for region in found.regions)
    counts = [f"{len(pictures):,} images", f"{len(found.regions):,} regions", f"{phrases:,} phrases"]
    counts += [f"{resized:,} images of another size than their boxes, which were brought to it"] if resized else []
    return content, counts + [f"left out: {count:,} {what}" for what, count in found.left_out.items()]


def annotations(found: Published, pictures: dict[int, dict]) -> list[dict]:
    """The regions of a split as annotations, in pixels of their files."""
    rows = []
    for number, region in enumerate(found.regions, start=1):
        picture = pictures[region.image_id]
        across, down = picture["width"] / region.size[0], picture["height"] / region.size[1]
        x1, y1, x2, y2 = region.box
        bbox = [round(side, 3) for side in (x1 * across, y1 * down, (x2 - x1) * across, (y2 - y1) * down)]
        row = {"id": number, "image_id": region.image_id, "bbox": bbox, "phrases": region.phrases, "types": region.types}
        rows.append(row | ({"attributes": region.attributes} if region.attributes else {}))
    return rows


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file, from its header. Raises EvcapError for a file that is no image."""
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            return image.size
    except Exception as error:  # each decoder has its own exceptions for damaged headers
        raise EvcapError(f"{path} cannot be used as an image: {one_line(error)}") from None


def main(
    chosen: Annotated[Set, typer.Argument(metavar="SET", help=f"One of {', '.join(SETS)}.")],
    source: Annotated[Path, typer.Option(help="Folder below which the downloaded files lie.")],
    data: DataFolder,
    images: Annotated[Path | None, typer.Option(help="Folder below which the images lie, if not below --source.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given several times.")] = None,
    quiet: NoBars = False,
) -> None:
    """Bring a set that you downloaded into the format of data/README.md."""
    name = chosen.value
    splits = split or list(SETS[name])
    for unknown in set(splits) - set(SETS[name]):
        raise EvcapError(f"{name} has no split '{unknown}', but {', '.join(SETS[name])}")
    files = Files(source)
    for archive, md5 in ARCHIVES.get(name, {}).items():
        if path := files.find(archive):
            check_archive(path, md5, quiet)
    folder = data / name
    root = pictures_folder(folder / "images", images or source)
    pictures = files if root == source else Files(root)
    kind, make = ("captions", captions_format) if name in BENCHMARKS else ("regions", regions_format)
    problems = []
    for part in splits:  # what is wrong with one split does not keep the others back
        try:
            content, counts = make(name, part, files, pictures)
        except EvcapError as error:
            problems.append(f"{name} {part}: {error}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "images").exists():
            os.symlink(root.resolve(), folder / "images")
        target = folder / f"{kind}_{part}.json"
        write_text(target, json.dumps({"info": {"description": f"{name} {part}"}} | content) + "\n")
        print(f"{target}: {', '.join(counts)}")
    for problem in problems:
        complain(problem)
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command(main))
