"""Brings a benchmark that you downloaded into the project's format: COCO captions files beside a link to the images.

    python data/convert.py nocaps --source DOWNLOADS --data DIR

SET is coco-karpathy, flickr30k, nocaps or whoops; data/README.md says where to get each. The annotation file and the
images, unpacked, may lie anywhere below DOWNLOADS. Ids, numbers of images and captions, the images' files and, where
archives with a known MD5 are still there, these are checked; a split that is not as it should be is not written. Images
are not copied. Exits with 1 when there is a problem.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command, complain
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import tqdm
from evcap.datasets.benchmarks import ARCHIVES, BENCHMARKS, Files, Row, read_rows
from evcap.errors import EvcapError
from evcap.files import write_text

Benchmark = StrEnum("Benchmark", {name: name for name in BENCHMARKS})


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


def coco_format(rows: list[Row], images: Files, title: str) -> dict:
    """Rows as a COCO captions file, whose file names are relative to the folder of `images`."""
    places = {row.id: images.find(row.file) for row in rows}
    missing = [row.file for row in rows if places[row.id] is None]
    if missing:
        where = f"missing below {images.folder} (are the archives unpacked?)"
        raise EvcapError(f"{len(missing):,} images are {where}, the first is {missing[0]}")
    pictures = [{"id": r.id, "file_name": places[r.id].relative_to(images.folder).as_posix(), **r.fields} for r in rows]
    captions = [{"image_id": row.id, "caption": caption} for row in rows for caption in row.captions]
    captions = [{"id": number, **caption} for number, caption in enumerate(captions)]
    return {"info": {"description": title}, "images": pictures, "annotations": captions}


def main(
    benchmark: Annotated[Benchmark, typer.Argument(metavar="SET", help=f"One of {', '.join(BENCHMARKS)}.")],
    source: Annotated[Path, typer.Option(help="Folder below which the downloaded files lie.")],
    data: DataFolder,
    images: Annotated[Path | None, typer.Option(help="Folder below which the images lie, if not below --source.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split; may be given several times.")] = None,
    quiet: NoBars = False,
) -> None:
    """Bring a benchmark that you downloaded into the format of data/README.md."""
    name = benchmark.value
    splits = split or list(BENCHMARKS[name])
    for unknown in set(splits) - set(BENCHMARKS[name]):
        raise EvcapError(f"{name} has no split '{unknown}', but {', '.join(BENCHMARKS[name])}")
    files = Files(source)
    for archive, md5 in ARCHIVES.get(name, {}).items():
        if path := files.find(archive):
            check_archive(path, md5, quiet)
    folder = data / name
    root = pictures_folder(folder / "images", images or source)
    pictures = files if root == source else Files(root)
    problems = []
    for part in splits:  # what is wrong with one split does not keep the others back
        try:
            rows = read_rows(name, part, files)
            content = coco_format(rows, pictures, f"{name} {part}")
        except EvcapError as error:
            problems.append(f"{name} {part}: {error}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "images").exists():
            os.symlink(root.resolve(), folder / "images")
        target = folder / f"captions_{part}.json"
        write_text(target, json.dumps(content) + "\n")
        domains = Counter(row.fields["domain"] for row in rows if row.fields)
        counts = [f"{len(rows):,} images", f"{len(content['annotations']):,} captions"]
        counts += [f"{count:,} {domain}" for domain, count in sorted(domains.items())]
        print(f"{target}: {', '.join(counts)}")
    for problem in problems:
        complain(problem)
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command(main))
