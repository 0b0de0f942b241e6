"""From a bare list of names to a working memory: reuse what exists, take the images there are, draw what is missing.

    python memory/rebuild.py VOCABULARY.txt --output FOLDER [--images DIR] [--diffusion FOLDER_OR_HUB]
    python memory/rebuild.py VOCABULARY.txt --extend FOLDER ...

VOCABULARY.txt holds a name a line; the first is said, synonyms after "/" only help to find material. A name gets all entries
that a --reuse memory (the preset's own, unless others are named) holds of it and all images in --images folders of its
name; one that has neither is drawn. --extend adds to a memory the names it lacks. Killed, the same command goes on.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command, complain, report
from evcap.cli.options import Count, DrawingBatch, EngineChoice, Guidance, NoBars, Seed, Steps, Template, Trained
from evcap.cli.progress import shown
from evcap.config import assets_folder, load_preset, shipped_memory
from evcap.datasets.coco import read_vocabulary
from evcap.datasets.named_images import NamedImage, columns, distinct, read_named_folders
from evcap.datasets.synthesis import Brush, blanked_line, draw, plan
from evcap.encoding.keys import Encoder, encode_keys
from evcap.encoding.ray import Engine
from evcap.errors import EvcapError
from evcap.memory.memory import VisualNameMemory
from evcap.memory.names import clean_name
from evcap.row_store import remove_rows

Vocabulary = dict[str, set[str]]  # each name that is said, with all names that mean it


def by_synonym(vocabulary: Vocabulary) -> dict[str, list[str]]:
    """Each name and synonym with the names said for it; what is said itself means nothing else."""
    said: dict[str, list[str]] = {}
    for name, synonyms in vocabulary.items():
        for synonym in sorted(synonyms):
            if synonym == name or synonym not in vocabulary:
                said.setdefault(synonym, []).append(name)
    return said


def known_entries(memory: VisualNameMemory, vocabulary: Vocabulary) -> VisualNameMemory:
    """The entries whose names the vocabulary knows, under the names that are said."""
    said = by_synonym(vocabulary)
    pairs = [(name, entry) for entry, known in enumerate(memory.names) for name in said.get(clean_name(known), ())]
    names, entries = [name for name, _ in pairs], [entry for _, entry in pairs]
    sources, images = ([column[entry] for entry in entries] for column in (memory.sources, memory.images))
    return VisualNameMemory(memory.keys[entries], names, sources, images, memory.encoder)


def known_pictures(folder: Path, vocabulary: Vocabulary) -> list[NamedImage]:
    """Images in folders whose names the vocabulary knows, under the names that are said."""
    said = by_synonym(vocabulary)
    items = read_named_folders(folder, folder.resolve().name, complain)
    return [replace(item, name=name) for item in items for name in said.get(item.name, ())]


def own_memory(preset: str) -> Path | None:
    """The memory that a preset names among its assets; None if there is none yet."""
    settings = load_preset(preset)
    folder = assets_folder(preset, settings) / "memory"
    return folder if settings.assets and folder.exists() else None


def coverage(names: list[str], parts: dict[str, list[str]]) -> str:
    """A line for each source with the names of its entries, and the names for which there is nothing."""
    lines = [f"  {part:10} {len(found):7,} entries of {len(set(found)):6,} names" for part, found in parts.items() if found]
    nothing = [name for name in names if not any(name in found for found in map(set, parts.values()))]
    return "\n".join(lines + ([f"  nothing for {len(nothing):,} names: {', '.join(nothing)}"] if nothing else []))


def main(
    vocabulary_path: Annotated[Path, typer.Argument(metavar="VOCABULARY", help="File of names, one a line, synonyms after /.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the new memory.")] = None,
    extend: Annotated[Path | None, typer.Option(help="Folder of a memory that gets the names it lacks.")] = None,
    reuse: Annotated[list[Path] | None, typer.Option(help="Memory to take entries from; the preset's by default.")] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Folder with a folder of images for each name.")] = None,
    diffusion: Annotated[str | None, typer.Option(help="Pipeline that draws what is missing: folder or hub name.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of drawings and unfinished keys; FOLDER.work by default.")] = None,
    template: Template = Brush.template,
    count: Count = Brush.count,
    steps: Steps = None,
    guidance: Guidance = None,
    drawing_batch: DrawingBatch = Brush.batch,
    seed: Seed = Brush.seed,
    preset: Annotated[
        str, typer.Option(help="Preset whose encoder makes the keys: a shipped name or a YAML file.")
    ] = "embedded",
    trained: Trained = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that are encoded together.")] = 32,
    engine: EngineChoice = Engine.local,
    quiet: NoBars = False,
) -> None:
    """From a bare list of names to a working memory: reuse, encode images, draw what is missing."""
    if (output is None) == (extend is None):
        raise EvcapError("name one folder: --output for a new memory, or --extend for one that gets the names it lacks")
    folder = output or extend
    if folder.resolve() == shipped_memory().resolve():
        raise EvcapError("the shipped memory is only read: copy it with `evcap memory export FOLDER`, then --extend FOLDER")
    work = work or folder.with_name(f"{folder.name}.work")
    brush = Brush(diffusion, template, count, steps, guidance, drawing_batch, seed) if diffusion else None
    vocabulary = read_vocabulary(vocabulary_path)
    encoder = Encoder(preset, trained)

    there = set(VisualNameMemory.open(extend, encoder.fingerprint).names) if extend else set()
    lacking = {name: synonyms for name, synonyms in vocabulary.items() if name not in there}
    if reuse is None:  # a preset's memory fits its own tensors only
        own = own_memory(preset)
        reuse = [own] if own and not trained else []
    reused = [known_entries(VisualNameMemory.open(memory, encoder.fingerprint), lacking) for memory in reuse]
    pictures = [item for parent in images or [] for item in known_pictures(parent, lacking)]
    missing = lacking.keys() - {name for memory in reused for name in memory.names} - {item.name for item in pictures}
    drawn = []
    if brush and missing:
        planned = plan([name for name in lacking if name in missing], work / "drawings", brush)
        drawn, blanked = draw(planned, brush, shown(quiet))
        if blanked:
            complain(blanked_line(blanked))
    encoded = encode_keys(encoder, pictures + drawn, work / "keys", batch, engine, shown(quiet))

    dim = encoder.captioner.preset.image_qformer.width
    memory = VisualNameMemory.open(folder, encoder.fingerprint) if extend else VisualNameMemory.empty(dim, encoder.fingerprint)
    before = len(memory)
    added = sum(memory.merge(part) for part in reused) + memory.add(encoded.keys, *columns(encoded.items))
    passed = sum(map(len, reused)) + len(encoded.items) - added
    if len(memory) == before and lacking:
        some = ", ".join(list(lacking)[:5]) + (", ..." if len(lacking) > 5 else "")
        raise EvcapError(f"there is nothing for {some}: give images (--images) or let them be drawn (--diffusion)")
    memory.save(folder, shown(quiet))
    remove_rows(work / "keys")
    with suppress(OSError):  # drawings stay
        work.rmdir()

    drawings = {item.path for item in drawn}
    parts = {
        "there": [name for name in memory.names[:before] if name in vocabulary],
        "reused": [name for part in reused for name in part.names],
        "images": [item.name for item in encoded.items if item.path not in drawings],
        "drawn": [item.name for item in encoded.items if item.path in drawings],
    }
    twice = f", passed by {passed:,} that were there already" if passed else ""
    print(f"{folder}: {len(memory):,} entries of {len(memory.counts()):,} names{twice}")
    print(coverage(list(vocabulary), parts))
    report(encoded.failures, len(distinct(pictures + drawn)))
    if encoded.failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command(main))
