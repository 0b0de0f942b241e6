"""Options that several commands have, each told once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from evcap.encoding.ray import Engine
from evcap.errors import EvcapError

Preset = Annotated[str, typer.Option(help="A shipped preset's name, or the path of a YAML file.")]
Memory = Annotated[Path | None, typer.Option(help="Folder of the memory to use in place of the shipped one.")]
Generator = Annotated[
    str | None,
    typer.Option(
        metavar="WHO",
        help="Who writes, in place of the preset's: evcap, a folder or hub name of an image-text-to-text model, or the "
        "http(s) address of an OpenAI-compatible endpoint.",
    ),
]
GeneratorModel = Annotated[str | None, typer.Option(help="The model's name at the endpoint of --generator.")]
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Images, folders (searched below), patterns; - reads paths from standard input, one a line or ended by NUL.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Write results to this file; it grows as FILE.part and gets its name when all is done."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images that go through the model together.")]
Beams = Annotated[int | None, typer.Option(min=1, help="Width of the beam search; the preset's by default.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Tokens in a caption, at most.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no closing line.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of the model on CPUs; without it the cores that this process may use.")
]
Bands = Annotated[
    str | None, typer.Option("--bands", help="Bands shown as red, green and blue, as 3,2,1, or one as grey; counted from 1.")
]
Stretch = Annotated[
    str | None, typer.Option("--stretch", help="Percentiles of a raster's values that become black and white, as 2,98.")
]


# of recipes
DataFolder = Annotated[Path, typer.Option(help="Folder of the data sets, see data/README.md.")]
NoBars = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Trained = Annotated[Path | None, typer.Option(help="Trained tensors to encode with, if not the shipped ones.")]
EngineChoice = Annotated[Engine, typer.Option("--engine", help="Who encodes: this process, or the workers of a Ray cluster.")]

# of recipes that draw
Template = Annotated[str, typer.Option(help="Prompt; {name} stands for the name.")]
Count = Annotated[int, typer.Option(min=1, help="Drawings of a name.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps; the pipeline's own by default, 1 for Turbo models.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; the pipeline's own by default, 0 for Turbo models.")]
DrawingBatch = Annotated[int, typer.Option(min=1, help="Drawings made together.")]
Seed = Annotated[int, typer.Option(help="Each drawing's seed follows from this, its name and its number.")]


def named_paths(paths: Sequence[str]) -> list[str]:
    """The paths of the command line; in place of "-" those that standard input lists. Raises EvcapError if it lists none."""
    if "-" not in paths:
        return list(paths)
    data = sys.stdin.buffer.read()
    listed = data.split(b"\0") if b"\0" in data else data.splitlines()
    read = [os.fsdecode(path) for path in listed if path.strip()]
    if not read:
        raise EvcapError("standard input lists no paths: one a line, or each ended by NUL as by `find -print0`")
    at = paths.index("-")
    return [*paths[:at], *read, *(path for path in paths[at + 1 :] if path != "-")]
