"""The tags of a region captioner: what the phrases of many regions name, the most frequent first, one a line.

python train/region_tags.py train/configs/embedded-regions.yaml --data DIR --output evcap/assets/embedded/tags.txt
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import shown
from evcap.files import write_text
from evcap.training.region_data import RegionFile, read_samples
from evcap.training.region_words import vocabulary, words_of
from evcap.yaml_files import from_dict, read_yaml


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of train_regions.py.")],
    data: DataFolder,
    output: Annotated[Path, typer.Option(help="File to write.")],
    least: Annotated[int, typer.Option(help="Regions that a tag must hold for, at least.")] = 12,
    quiet: NoBars = False,
) -> None:
    """Write the tags of a region captioner."""
    settings = read_yaml(config_path)
    files = [from_dict(RegionFile, file, f"{config_path}: files") for file in settings["files"]]
    samples = read_samples(files, data, 0.0, settings.get("seed", 0))
    tags = vocabulary(words_of(samples, shown(quiet)), least)
    write_text(output, "".join(f"{tag}\n" for tag in tags))
    print(f"{output}: {len(tags)} tags")


if __name__ == "__main__":
    typer.run(command(main))
