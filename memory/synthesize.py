"""Draw images of names with a text-to-image model (EVCap, arXiv 2311.15879: five a name, "a photo of {name}").

    python memory/synthesize.py VOCABULARY.txt --diffusion FOLDER_OR_HUB --output FOLDER

Writes FOLDER/name/number.png, which memory/build.py (`folders`) and `evcap memory add --from-folder` read. Each PNG tells its
prompt, seed and model; with the same ones it is kept, so a run that was killed goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command, complain
from evcap.cli.options import Count, DrawingBatch, Guidance, NoBars, Seed, Steps, Template
from evcap.cli.progress import shown
from evcap.datasets.coco import read_vocabulary
from evcap.datasets.synthesis import Brush, blanked_line, draw, plan
from evcap.errors import EvcapError


def main(
    vocabulary: Annotated[Path, typer.Argument(metavar="VOCABULARY", help="File of names, one a line, synonyms after /.")],
    diffusion: Annotated[str, typer.Option(help="Folder or hub name of a Stable Diffusion, SDXL or SDXL-Turbo pipeline.")],
    output: Annotated[Path, typer.Option(help="Folder for the drawings.")],
    template: Template = Brush.template,
    count: Count = Brush.count,
    steps: Steps = None,
    guidance: Guidance = None,
    drawing_batch: DrawingBatch = Brush.batch,
    seed: Seed = Brush.seed,
    quiet: NoBars = False,
) -> None:
    """Draw images of names with a text-to-image model."""
    brush = Brush(diffusion, template, count, steps, guidance, drawing_batch, seed)
    names = read_vocabulary(vocabulary)
    drawn, blanked = draw(plan(names, output, brush), brush, shown(quiet))
    if not drawn:
        raise EvcapError(
            f"{diffusion}: the safety checker blanked all {blanked.total()} drawings; try another template or seed"
        )
    print(f"{output}: {len(drawn)} drawings of {len({item.name for item in drawn})} names")
    if blanked:
        complain(blanked_line(blanked))


if __name__ == "__main__":
    typer.run(command(main))
