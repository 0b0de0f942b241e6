"""A gallery for `evcap ask --gallery` from labelled images: folders that bear the label, or CSV files.

    python memory/build_gallery.py photos/ more.csv --output mine

photos/storage tanks/*.jpg, or a CSV file with the columns image and name (and x1, y1, x2, y2 for boxes). A gallery is a
visual-name memory, made by the preset's text tower where it has one, so `evcap memory` lists and edits it. Killed? The same
command goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from evcap.cli.console import command, complain, report
from evcap.cli.options import NoBars
from evcap.cli.progress import shown
from evcap.datasets.named_images import NamedImage, choose, distinct, read_named_csv, read_named_folders
from evcap.encoding.keys import Encoder, save_memory
from evcap.gigapixel.search.towers import Tower, open_tower
from evcap.memory.keys import mean_keys


class LabelEncoder(Encoder):
    """Keys of the tower that looks at tiles: the mean of an image's features, of unit length."""

    @cached_property
    def tower(self) -> Tower:
        return open_tower(self.captioner)

    @property
    def fingerprint(self) -> str:
        return self.tower.encoder_fingerprint

    @property
    def width(self) -> int:
        return self.tower.shape[1]

    def keys(self, images: Sequence[Image.Image], batch: int) -> np.ndarray:
        """Images -> keys (n,D) float32."""
        return mean_keys(self.tower.query_features(images, batch)).numpy()


def read(source: Path) -> list[NamedImage]:
    if source.is_file():
        return read_named_csv(source, source.stem)
    return read_named_folders(source, source.name, complain)


def main(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE", help="Folders of folders of images, and CSV files.")],
    output: Annotated[Path, typer.Option(help="Folder of the gallery; FOLDER.part keeps what is done until it is whole.")],
    per_label: Annotated[int, typer.Option(min=1, help="Images of a label, drawn at random if there are more.")] = 40,
    preset: Annotated[str, typer.Option(help="Preset whose encoder looks: a shipped name or a YAML file.")] = "embedded",
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 0,
    quiet: NoBars = False,
) -> None:
    items = [item for source in sources for item in read(source)]
    chosen = choose(items, per_label, seed)
    gallery, failures = save_memory(LabelEncoder(preset), chosen, output, progress=shown(quiet))
    print(f"{output}: {len(gallery)} images of {len(gallery.counts())} labels")
    report(failures, len(distinct(chosen)))
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command(main))
