"""`evcap caption`. Heavy modules are imported inside the command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

import evcap
from evcap.cli.ask import is_large, large_captions
from evcap.cli.console import Progress, answers, command, complain, report, tell_finished
from evcap.cli.embedded import embed
from evcap.cli.interrupt import INTERRUPTED
from evcap.cli.options import (
    Bands,
    BatchSize,
    Beams,
    Generator,
    GeneratorModel,
    MaxLength,
    Memory,
    Output,
    Paths,
    Preset,
    Quiet,
    Stretch,
    Threads,
    named_paths,
)
from evcap.cli.outputs import check_outputs
from evcap.cli.preflight import check_model, checked_decoding, made_with
from evcap.cli.result_file import ResultWriter
from evcap.cli.results import Format, Result
from evcap.cli.sidecars import Existing, Sidecars
from evcap.config import GeneratorConfig, load_preset
from evcap.errors import EvcapError
from evcap.generators.options import chosen, side_of
from evcap.raster.display import Display


@command
def caption_command(
    paths: Paths,
    form: Annotated[
        Format,
        typer.Option("--format", help="How results are written; metadata is the metadata.jsonl that diffusion trainers read."),
    ] = Format.text,
    output: Output = None,
    sidecar: Annotated[bool, typer.Option("--sidecar", help="Write photo.txt beside photo.jpg.")] = False,
    extension: Annotated[str, typer.Option(help="Of the files of --sidecar, in place of .txt.")] = ".txt",
    embedded: Annotated[
        bool, typer.Option("--embed", help="Write captions into JPEG, PNG and WebP files (EXIF ImageDescription).")
    ] = False,
    existing: Annotated[
        Existing, typer.Option(help="What --sidecar and --embed do with a text that is there already.")
    ] = Existing.keep,
    prefix: Annotated[str, typer.Option(help="Text before each caption.")] = "",
    suffix: Annotated[str, typer.Option(help="Text behind each caption.")] = "",
    num_captions: Annotated[int, typer.Option(min=1, help="Captions for each image.")] = 1,
    beams: Beams = None,
    min_length: Annotated[int | None, typer.Option(min=0, help="Tokens in a caption, at least.")] = None,
    max_length: MaxLength = None,
    batch_size: BatchSize = 16,
    memory: Memory = None,
    preset: Preset = "embedded",
    generator: Generator = None,
    generator_model: GeneratorModel = None,
    bands: Bands = None,
    stretch: Stretch = None,
    threads: Threads = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Skip images that FILE.part, or else FILE, holds without error (all formats but text); "
            "with --sidecar and no --output, those that have their text file.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Caption images: results on standard output or in --output, progress and errors on standard error."""
    from evcap.images.opening import find_images
    from evcap.runtime import use_threads

    use_threads(threads)
    _check_texts(sidecar, extension, embedded, existing)
    display = Display.read(bands, stretch)
    files = find_images(named_paths(paths), report=complain)
    who = chosen(load_preset(preset), generator, generator_model)
    model = check_model(preset, memory, generator=who)
    lengths = {"beams": beams, "min_length": min_length, "max_length": max_length}
    decoding = checked_decoding(model, num_captions, who, **lengths)
    sidecars = Sidecars(files, extension, existing) if sidecar else None
    check_outputs({"--output": output}, [*files, *(sidecars.path(file) for file in files if sidecars)])
    folder = _metadata_folder(files, output) if form == Format.metadata else ""
    by_sidecar = resume and sidecar and output is None
    around = {"prefix": prefix, "suffix": suffix, "bands": bands, "stretch": stretch}
    settings = _settings(made_with(preset, model, memory, who), {"num_captions": num_captions} | asdict(decoding) | around)
    failures: list[str] = []
    done = 0
    texts = _Texts(sidecars, embedded, existing)
    load = cache(partial(evcap.load, preset, memory, generator=who))  # loaded when the first image is open
    options = {"num_captions": num_captions, "batch_size": batch_size, **lengths}
    with ResultWriter(output, form, resume and not by_sidecar, settings) as writer:
        finished = sidecars.finished if by_sidecar else writer.is_finished
        todo = [file for file in files if not finished(file)]
        tell_finished(len(files) - len(todo), len(files), quiet, writer.remark)
        try:
            ask = partial(_captions, load, options)
            enough = max(model.vision.opened_side, side_of(who))
            said = _all_answers(todo, preset, memory, batch_size, ask, quiet, display, enough, who)
            with closing(said), Progress(len(todo), quiet) as progress:
                for file, caption, error in said:
                    names = [(hit.name, hit.similarity) for hit in caption.names] if caption else []
                    captions = [f"{prefix}{text}{suffix}" for text in caption.captions] if caption else []
                    error = error or texts.put(file, captions)
                    writer.write(Result(str(file), captions, names, error, folder))
                    failures += [error] if error else []
                    done += 1
                    progress.advance()
            writer.complete()
        except KeyboardInterrupt:
            report(failures, len(todo))
            complain(f"interrupted after {done} of {len(todo)} images; {_way_on(writer, sidecar)}")
            raise typer.Exit(INTERRUPTED) from None
    texts.tell_kept()
    report(failures, len(todo))
    if failures:
        raise typer.Exit(1)


def _captions(load: Callable, options: dict, images: Sequence) -> list:
    """A caption of each image, or the exception that came instead."""
    from evcap.generators.generator import Unanswered

    try:
        return load().caption(images, **options)
    except Unanswered as error:
        return error.replies


def _settings(*parts: dict) -> dict:
    """What a run was made with, under the names that options have."""
    return {"evcap": evcap.__version__} | {key.replace("_", "-"): value for part in parts for key, value in part.items()}


def _metadata_folder(files: Sequence[Path], output: Path | None) -> str:
    """The folder whose images a metadata file tells of. Raises EvcapError for an image that is not in it or below."""
    folder = os.path.abspath(output.parent if output else ".")
    for file in files:
        if os.path.commonpath([folder, os.path.abspath(file)]) != folder:
            raise EvcapError(f"--format metadata tells of images in {folder} and below, where {file} is not")
    return folder


def _check_texts(sidecar: bool, extension: str, embedded: bool, existing: Existing) -> None:
    """Raises EvcapError for options that mean nothing without others."""
    if existing != Existing.keep and not (sidecar or embedded):
        raise EvcapError(f"--existing {existing} is about the texts of --sidecar and --embed: name one of them")
    if extension != ".txt" and not sidecar:
        raise EvcapError("--extension is of the files of --sidecar: name it too")


class _Texts:
    """Where captions go beside the results: into the images, and into texts beside them."""

    def __init__(self, sidecars: Sidecars | None, embedded: bool, existing: Existing):
        self.sidecars, self.embedded, self.existing, self._kept = sidecars, embedded, existing, 0

    def put(self, file: Path, captions: list[str]) -> str | None:
        """Write the captions of one image, last the sidecar, which --resume looks at. Returns what failed, in one line."""
        if self.embedded:
            try:
                self._kept += not embed(file, captions, self.existing)
            except EvcapError as error:
                return str(error)
        return self.sidecars.write(file, captions) if self.sidecars else None

    def tell_kept(self) -> None:
        """One line on standard error if texts that were there stayed."""
        count = self._kept + (self.sidecars.kept if self.sidecars else 0)
        if count:
            told = "1 text was there before and was" if count == 1 else f"{count:,} texts were there before and were"
            complain(f"{told} kept; --existing overwrite, append or prepend changes that")


def _all_answers(
    todo: Sequence[Path],
    preset: str,
    memory: Path | None,
    batch_size: int,
    ask: Callable,
    quiet: bool,
    display: Display,
    enough: int,
    generator: GeneratorConfig,
) -> Iterator[tuple]:
    """As `answers`, of photos first and then of images that are captioned by their tiles."""
    large = [file for file in todo if is_large(file)]
    with closing(answers([file for file in todo if file not in large], preset, batch_size, ask, display, enough)) as said:
        yield from said
    if large:
        yield from large_captions(large, preset, memory, quiet, display, generator)


def _way_on(writer: ResultWriter, sidecar: bool) -> str:
    if writer.part and writer.form != Format.text:
        return f"finished lines are in {writer.part}, the same command with --resume goes on from there"
    if sidecar and not writer.path:
        return "the same command with --resume goes on from there"
    return "a run with --output FILE and --format jsonl or csv can be continued with --resume"
