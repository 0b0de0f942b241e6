"""Fit the phrase model, which helps to choose among the beams, on the keys of captioned images.

    python train/phrases.py train/configs/embedded-phrases.yaml --data DIR

Closed form, without steps: one process, about ten seconds on two cores once the query features are cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from evcap.cli.console import command
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import shown
from evcap.config import load_preset
from evcap.language.phrases import PhraseModel
from evcap.language.sentences import clean_caption
from evcap.memory.keys import mean_keys
from evcap.model.build import build_model
from evcap.model.fingerprint import encoder_fingerprint
from evcap.training.features import cached_queries
from evcap.training.run_folder import read_split
from evcap.yaml_files import load_yaml


@dataclass(frozen=True)
class Config:
    """What the model is fitted on. Sets are folders below --data."""

    output: str
    trained: str  # tensors of the image Q-Former
    sets: list[str]
    preset: str = "embedded"
    size: int = 2400  # phrases
    least: int = 10  # images whose captions must say a phrase
    longest: int = 4  # words of a phrase
    ridge: float = 0.003  # in mean variances of a key's coordinates


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see train/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    """Fit the phrase model, which helps to choose among the beams."""
    config = load_yaml(config_path, Config)
    model = build_model(load_preset(config.preset), config.trained)
    encoder = encoder_fingerprint(model)
    records = read_split(data, config.sets, "train")
    paths = [r.path for r in records]
    views = [cached_queries(model, paths, data, encoder, mirrored, shown(quiet)) for mirrored in (False, True)]
    keys = [mean_keys(torch.from_numpy(view)) for view in views]
    captions = [[clean_caption(c) for c in r.captions] for r in records]
    phrases = PhraseModel.fit(keys, captions, encoder, config.size, config.least, config.longest, config.ridge)
    phrases.save(config.output)
    print(f"{config.output}: {len(phrases.phrases)} phrases from {len(records)} images")


if __name__ == "__main__":
    typer.run(command(main))
