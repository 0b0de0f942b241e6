"""`evcap memory ...`: look into a memory and edit it. Only `add` and `search` load a model."""

from __future__ import annotations

import json
from contextlib import closing
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import evcap
from evcap.cli.console import Progress, answers, command, complain, report
from evcap.cli.options import Bands, BatchSize, Quiet, Stretch, Threads, named_paths
from evcap.cli.outputs import check_folder
from evcap.cli.preflight import check_model
from evcap.cli.progress import shown
from evcap.config import shipped_memory
from evcap.errors import EvcapError
from evcap.memory.index_kind import IndexKind
from evcap.raster.display import Display

if TYPE_CHECKING:
    from evcap.memory.memory import VisualNameMemory

memory_app = typer.Typer(
    help="Look into a memory and edit it. The shipped one is only read: "
    "copy it with `evcap memory export FOLDER`, then edit with --memory FOLDER.",
    no_args_is_help=True,
)

Which = Annotated[Path | None, typer.Option("--memory", help="Folder of the memory; the shipped one by default.")]
Edited = Annotated[Path | None, typer.Option("--memory", help="Folder of the memory to edit; must be named.")]
Preset = Annotated[str, typer.Option(help="Preset whose encoder looks at images: a shipped name or a YAML file.")]


class ListFormat(StrEnum):
    text = "text"
    jsonl = "jsonl"


def _open(folder: Path | None) -> VisualNameMemory:
    from evcap.memory.memory import VisualNameMemory

    return VisualNameMemory.open(folder or shipped_memory())


def _to_edit(folder: Path | None) -> Path:
    """The folder of a memory that may be changed."""
    if folder is None or folder.resolve() == shipped_memory().resolve():
        raise EvcapError(
            "the shipped memory is only read: copy it with `evcap memory export FOLDER`, then edit with --memory FOLDER"
        )
    return folder


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _passed(count: int) -> str:
    return f", passed by {count:,} that {'was' if count == 1 else 'were'} there already" if count else ""


def _size(memory: VisualNameMemory) -> str:
    return f"{_plural(len(memory), 'entry', 'entries')} of {_plural(len(memory.counts()), 'name', 'names')}"


@memory_app.command("info")
@command
def info(memory: Which = None) -> None:
    """Sizes, encoder and format of a memory."""
    opened = _open(memory)
    folder = memory or shipped_memory()
    manifest = json.loads((folder / "manifest.json").read_text())
    width = opened.keys.shape[1]
    counts = opened.counts().values()
    typer.echo(f"folder    {folder}")
    typer.echo(f"entries   {_size(opened)}" + (f", {min(counts)} to {max(counts)} a name" if counts else ""))
    typer.echo(f"keys      {width} x {opened.keys.dtype}, unit length")
    settings = "".join(f", {name} {value}" for name, value in manifest.get("search", {}).items())
    chosen = ", chosen" if manifest.get("chosen") else ""
    typer.echo(f"index     {opened.kind}{settings}{chosen}")
    typer.echo(f"encoder   {opened.encoder}")
    typer.echo(f"format    {manifest.get('format', '?')}")
    typer.echo(f"on disk   {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB")


@memory_app.command("list")
@command
def list_names(
    memory: Which = None, form: Annotated[ListFormat, typer.Option("--format", help="How to write.")] = ListFormat.text
) -> None:
    """All names with the number of their entries, in alphabetical order."""
    for name, count in sorted(_open(memory).counts().items()):
        typer.echo(json.dumps({"name": name, "entries": count}) if form == ListFormat.jsonl else f"{count:6d}  {name}")


@memory_app.command("search")
@command
def search(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to compare with all entries.")],
    limit: Annotated[int, typer.Option(min=1, help="Entries shown.")] = 10,
    memory: Which = None,
    preset: Preset = "embedded",
    bands: Bands = None,
    stretch: Stretch = None,
    threads: Threads = None,
) -> None:
    """The entries most like a whole image, with cosine similarity (`evcap names` shows what each query finds)."""
    from evcap.config import load_preset
    from evcap.images.opening import open_image, stored_path
    from evcap.runtime import use_threads

    use_threads(threads)
    enough = load_preset(preset).vision.opened_side  # as images are opened that are added
    picture = open_image(stored_path(image), enough, Display.read(bands, stretch))
    check_model(preset, memory)
    captioner = evcap.load(preset, memory)
    found = captioner.memory
    similarities, entries = found.nearest(captioner.keys([picture]), min(limit, len(found)))
    typer.echo("similarity  name (source, image)")
    for similarity, entry in zip(similarities[0], entries[0], strict=True):
        if entry >= 0:
            where = f"{found.sources[entry]}, {found.images[entry]}"
            typer.echo(f"{similarity:10.3f}  {found.names[entry]} ({where})")


@memory_app.command("add")
@command
def add(
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]", help="Images of the named thing.")] = None,
    name: Annotated[str | None, typer.Option(help="What the images show.")] = None,
    from_folder: Annotated[
        Path | None, typer.Option(help="Folder of folders: images in DIR/fire hydrant/ get the name fire hydrant.")
    ] = None,
    memory: Edited = None,
    preset: Preset = "embedded",
    bands: Bands = None,
    stretch: Stretch = None,
    threads: Threads = None,
    batch_size: BatchSize = 16,
    quiet: Quiet = False,
) -> None:
    """Add an entry for each image; images that cannot be read are reported, the others are added."""
    import numpy as np

    from evcap.memory.memory import VisualNameMemory
    from evcap.runtime import use_threads

    use_threads(threads)
    folder, display = _to_edit(memory), Display.read(bands, stretch)
    named = _named_pictures(name, images, from_folder)
    check_model(preset, folder)
    load = cache(partial(evcap.load, preset, folder))
    keys, added, failures = [], [], []
    said = answers(list(named), preset, batch_size, lambda pictures: load().keys(pictures, batch_size), display)
    with closing(said), Progress(len(named), quiet) as progress:
        for file, key, error in said:
            if error:
                failures.append(error)
            else:
                keys.append(key)
                added.append(file)
            progress.advance()
    if added:
        names = [named[file] for file in added]
        edited = VisualNameMemory.open(folder, load().memory.encoder)  # once more: somebody may have edited it meanwhile
        count = edited.add(np.stack(keys), names, ["user"] * len(added), [str(file) for file in added])
        edited.save(folder, shown(quiet))
        different = len(set(edited.names[len(edited) - count :]))
        counted = f"{_plural(count, 'entry', 'entries')} of {_plural(different, 'name', 'names')}"
        typer.echo(f"added {counted}{_passed(len(added) - count)}; {folder} now holds {_size(edited)}")
    report(failures, len(named))
    if failures:
        raise typer.Exit(1)


def _named_pictures(name: str | None, images: list[str] | None, from_folder: Path | None) -> dict[Path, str]:
    from evcap.datasets.named_images import read_named_folders
    from evcap.images.opening import find_images
    from evcap.memory.memory import checked_name

    if from_folder is None:
        if name is None or not images:
            raise EvcapError("say what to add: --name NAME IMAGE..., or --from-folder DIR with a folder for each name")
        return dict.fromkeys(find_images(named_paths(images), report=complain), checked_name(name))
    if name is not None or images:
        raise EvcapError("--from-folder takes its names and images from the folder: leave out --name and IMAGE")
    return {item.path: item.name for item in read_named_folders(from_folder, "user", complain)}


@memory_app.command("remove")
@command
def remove(
    name: Annotated[str, typer.Argument(help="Its entries go.")],
    memory: Edited = None,
) -> None:
    """Remove all entries of a name."""
    folder = _to_edit(memory)
    edited = _open(folder)
    count = edited.remove(name)
    edited.save(folder)
    typer.echo(f"removed {_plural(count, 'entry', 'entries')}; {folder} now holds {_size(edited)}")


@memory_app.command("rename")
@command
def rename(
    old: Annotated[str, typer.Argument(help="The name now.")],
    new: Annotated[str, typer.Argument(help="The name its entries get; one that exists is joined.")],
    memory: Edited = None,
) -> None:
    """Give all entries of a name another one: captions follow at once."""
    folder = _to_edit(memory)
    edited = _open(folder)
    count = edited.rename(old, new)
    edited.save(folder)
    typer.echo(f"renamed {_plural(count, 'entry', 'entries')}; {folder} now holds {_size(edited)}")


@memory_app.command("merge")
@command
def merge(
    other: Annotated[Path, typer.Argument(help="Folder of the memory whose entries are added.")],
    memory: Edited = None,
) -> None:
    """Add the entries of another memory made by the same encoder."""
    folder = _to_edit(memory)
    edited = _open(folder)
    given = _open(other)
    count = edited.merge(given)
    edited.save(folder)
    typer.echo(f"merged {_plural(count, 'entry', 'entries')}{_passed(len(given) - count)}; {folder} now holds {_size(edited)}")


@memory_app.command("index")
@command
def index(
    kind: Annotated[IndexKind | None, typer.Option(help="Kind of index to keep; without it the one for the size.")] = None,
    memory: Edited = None,
    quiet: Quiet = False,
) -> None:
    """Build the index of a memory anew: flat compares all keys, the others pass most by, which pays when there are many."""
    from evcap.memory.memory import VisualNameMemory

    folder = _to_edit(memory)
    edited = VisualNameMemory.open(folder, index=False)  # a damaged index is no obstacle
    edited.reindex(kind, shown(quiet))
    edited.save(folder, shown(quiet))
    typer.echo(f"{folder} now has index {edited.kind} over {_size(edited)}")


@memory_app.command("export")
@command
def export(
    folder: Annotated[Path, typer.Argument(help="New folder for the copy.")],
    memory: Which = None,
    empty: Annotated[bool, typer.Option("--empty", help="Keep the encoder, leave out the entries.")] = False,
) -> None:
    """Copy a memory to a folder, where it may be edited."""
    from evcap.memory.memory import VisualNameMemory

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EvcapError(f"{folder} exists; name a new folder")
    check_folder("FOLDER", folder)
    copied = _open(memory)
    if empty:
        copied = VisualNameMemory.empty(copied.keys.shape[1], copied.encoder, copied.keys.dtype)
    copied.save(folder)
    typer.echo(f"{folder} now holds {_size(copied)}")
