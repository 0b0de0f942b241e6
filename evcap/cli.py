"""The command line: `evcap caption`, `names`, `memory`, `index`. Heavy modules are imported inside the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

import evcap
from evcap.cli_ask import ask_command, is_large, large_captions
from evcap.cli_memory import memory_app
from evcap.cli_uhr import BandsChoice, StretchChoice, index_command
from evcap.console import INTERRUPTED, Progress, answers, command, complain, report
from evcap.display import Display
from evcap.errors import EvcapError
from evcap.results import Format, Result, ResultWriter, Sidecars, sidecar_path

app = typer.Typer(
    help="Describe photos, offline, with names from a memory that anyone can edit.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
app.add_typer(memory_app, name="memory")
app.command("index")(index_command)
app.command("ask")(ask_command)

Preset = Annotated[str, typer.Option(help="A shipped preset's name, or the path of a YAML file.")]
Memory = Annotated[Path | None, typer.Option(help="Folder of the memory to use in place of the shipped one.")]
Paths = Annotated[list[str], typer.Argument(metavar="PATH", help="Pictures, folders (searched below), patterns.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar and no closing line.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evcap {evcap.__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("caption")
@command
def caption_command(
    paths: Paths,
    form: Annotated[Format, typer.Option("--format", help="How results are written.")] = Format.text,
    output: Annotated[
        Path | None,
        typer.Option(help="Write results to this file; it grows as FILE.part and gets its name when all is done."),
    ] = None,
    sidecar: Annotated[bool, typer.Option("--sidecar", help="Write photo.txt beside photo.jpg.")] = False,
    num_captions: Annotated[int, typer.Option(min=1, help="Captions for each picture.")] = 1,
    beams: Annotated[int | None, typer.Option(min=1, help="Width of the beam search; the preset's by default.")] = None,
    min_length: Annotated[int | None, typer.Option(min=0, help="Tokens in a caption, at least.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens in a caption, at most.")] = None,
    batch_size: BatchSize = 16,
    memory: Memory = None,
    preset: Preset = "embedded",
    bands: BandsChoice = None,
    stretch: StretchChoice = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Skip pictures that FILE.part, or else FILE, holds without error (jsonl, csv); "
            "with --sidecar and no --output, those that have their text file.",
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Caption pictures: results on standard output or in --output, progress and errors on standard error."""
    from evcap.images import find_images

    display = Display.read(bands, stretch)
    files = find_images(paths, report=complain)
    sidecars = Sidecars(files) if sidecar else None
    by_sidecar = resume and sidecar and output is None
    writer = ResultWriter(output, form, resume and not by_sidecar)
    todo = [file for file in files if str(file) not in writer.finished]
    if by_sidecar:
        todo = [file for file in files if file in sidecars.refused or not sidecar_path(file).exists()]
    if not quiet and len(todo) < len(files):
        complain(f"{len(files) - len(todo)} of {len(files)} pictures were finished before")

    load = cache(partial(evcap.load, preset, memory))  # loaded when the first picture is open
    lengths = {"min_length": min_length, "max_length": max_length}
    options = {"num_captions": num_captions, "beams": beams, "batch_size": batch_size, **lengths}
    failures: list[str] = []
    done = 0
    try:
        said = _all_answers(todo, preset, memory, batch_size, partial(_captions, load, options), quiet, display)
        with closing(said), Progress(len(todo), quiet) as progress:
            for file, caption, error in said:
                names = [(hit.name, hit.similarity) for hit in caption.names] if caption else []
                captions = caption.captions if caption else []
                if sidecars and not error:
                    error = sidecars.write(file, captions)
                writer.write(Result(str(file), captions, names, error))
                failures += [error] if error else []
                done += 1
                progress.advance()
        writer.complete()
    except KeyboardInterrupt:
        report(failures, len(todo))
        complain(f"interrupted after {done} of {len(todo)} pictures; {_way_on(writer, sidecar)}")
        raise typer.Exit(INTERRUPTED) from None
    report(failures, len(todo))
    if failures:
        raise typer.Exit(1)


def _captions(load, options: dict, pictures) -> list:
    return load().caption(pictures, **options)


def _all_answers(todo, preset, memory, batch_size, ask, quiet, display) -> Iterator[tuple]:
    """As `answers`, of photos first and then of pictures that are captioned by their tiles."""
    large = [file for file in todo if is_large(file)]
    with closing(answers([file for file in todo if file not in large], preset, batch_size, ask, display)) as said:
        yield from said
    if large:
        yield from large_captions(large, preset, memory, quiet, display)


def _way_on(writer: ResultWriter, sidecar: bool) -> str:
    if writer.part and writer.form != Format.text:
        return f"finished lines are in {writer.part}, the same command with --resume goes on from there"
    if sidecar and not writer.path:
        return "the same command with --resume goes on from there"
    return "a run with --output FILE and --format jsonl or csv can be continued with --resume"


@app.command("names")
@command
def names_command(
    paths: Paths,
    plot: Annotated[
        Path | None, typer.Option(help="Draw one picture, its names and where their queries looked into this PNG.")
    ] = None,
    batch_size: BatchSize = 16,
    memory: Memory = None,
    preset: Preset = "embedded",
    bands: BandsChoice = None,
    stretch: StretchChoice = None,
) -> None:
    """Names that the memory gives for pictures, with cosine similarity and the query (0 to 31) that found each."""
    from evcap.images import find_images

    display = Display.read(bands, stretch)
    files = find_images(paths, report=complain)
    if plot and len(files) > 1:
        raise EvcapError(f"--plot draws one picture, {len(files)} were named; name one")
    load = cache(partial(evcap.load, preset, memory))
    failures: list[str] = []
    with closing(answers(files, preset, batch_size, partial(_names, load, plot is not None), display)) as said:
        for file, answer, error in said:
            if error:
                failures.append(error)
                continue
            picture, names, attention = answer
            typer.echo(f"{file}\n  similarity  query  name" if names else f"{file}\n  the memory gave no names")
            for hit in names:
                typer.echo(f"  {hit.similarity:10.3f}  {hit.query:5d}  {hit.name}")
            if plot:
                from evcap.overlay import draw_names

                draw_names(picture, names, attention, plot)
    report(failures, len(files))
    if failures:
        raise typer.Exit(1)


def _names(load, attend: bool, pictures) -> list[tuple]:
    """(picture, its names, attention maps (32,rows,columns) or None) for each picture."""
    captioner = load()
    found = captioner.names(pictures, batch_size=len(pictures))
    return [(p, names, captioner.attention(p) if attend else None) for p, names in zip(pictures, found, strict=True)]


if __name__ == "__main__":
    app()
