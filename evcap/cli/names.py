"""`evcap names`. Heavy modules are imported inside the command."""

from __future__ import annotations

from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

import evcap
from evcap.cli.console import Progress, answers, command, complain, report, tell_finished
from evcap.cli.interrupt import INTERRUPTED
from evcap.cli.options import Bands, BatchSize, Memory, Output, Paths, Preset, Quiet, Stretch, Threads, named_paths
from evcap.cli.outputs import check_outputs
from evcap.cli.preflight import check_model, made_with
from evcap.cli.result_file import ResultWriter
from evcap.cli.results import NamesResult, TableFormat
from evcap.errors import EvcapError
from evcap.raster.display import Display


@command
def names_command(
    paths: Paths,
    form: Annotated[TableFormat, typer.Option("--format", help="How results are written.")] = TableFormat.text,
    output: Output = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw one image, its names and where their queries looked into this PNG.")
    ] = None,
    batch_size: BatchSize = 16,
    memory: Memory = None,
    preset: Preset = "embedded",
    bands: Bands = None,
    stretch: Stretch = None,
    threads: Threads = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip images that FILE.part, or else FILE, holds without error (jsonl, csv).")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Names that the memory gives for images, with cosine similarity and the query (0 to 31) that found each."""
    from evcap.images.opening import find_images
    from evcap.runtime import use_threads

    use_threads(threads)
    display = Display.read(bands, stretch)
    files = find_images(named_paths(paths), report=complain)
    if plot and len(files) > 1:
        raise EvcapError(f"--plot draws one image, {len(files)} were named; name one")
    model = check_model(preset, memory)
    check_outputs({"--output": output, "--plot": plot}, files)
    load = cache(partial(evcap.load, preset, memory))
    failures: list[str] = []
    settings = {"evcap": evcap.__version__, "bands": bands, "stretch": stretch} | made_with(preset, model, memory)
    with ResultWriter(output, form, resume, settings, NamesResult) as writer:
        todo = [file for file in files if not writer.is_finished(file)]
        tell_finished(len(files) - len(todo), len(files), quiet, writer.remark)
        try:
            said = answers(todo, preset, batch_size, lambda pictures: _names(load(), pictures, plot is not None), display)
            with closing(said), Progress(len(todo), quiet) as progress:
                for file, answer, error in said:
                    picture, names, attention = answer or (None, [], None)
                    writer.write(NamesResult(str(file), [(hit.name, hit.similarity, hit.query) for hit in names], error))
                    failures += [error] if error else []
                    if plot and answer:
                        from evcap.plots.names import draw_names

                        draw_names(picture, names, attention, plot)
                    progress.advance()
            writer.complete()
        except KeyboardInterrupt:
            report(failures, len(todo))
            kept = bool(writer.part) and form != TableFormat.text
            complain(f"interrupted; {writer.part} goes on with --resume" if kept else "interrupted")
            raise typer.Exit(INTERRUPTED) from None
    report(failures, len(todo))
    if failures:
        raise typer.Exit(1)


def _names(captioner, pictures, attend: bool) -> list[tuple]:
    """(image, its names, attention maps (32,rows,columns) or None) for each image."""
    found = captioner.names(pictures, batch_size=len(pictures))
    return [(p, names, captioner.attention(p) if attend else None) for p, names in zip(pictures, found, strict=True)]
