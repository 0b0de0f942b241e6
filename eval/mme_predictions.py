"""Answer the questions of MME-RealWorld-RS; eval/mme_realworld.py scores the answers.

    python eval/mme_predictions.py eval/configs/mme-realworld-rs.yaml --data DIR
    python eval/mme_realworld.py runs/eval/mme-realworld-rs/predictions.jsonl --data DIR/mme-realworld-rs/MME_RealWorld_RS.json

Each question is asked as `evcap ask` does with its choices; the reply is the likeliest of them. The config's output folder gets
predictions.jsonl, a line a question, and indexes/, the tiles of each image, which its questions share (25 kB a tile). A run
that was stopped goes on where it was. Images that cannot be read are named at the end, with exit code 1.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from evcap.cli.console import command, report
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import tqdm
from evcap.errors import EvcapError
from evcap.evaluation.mme_realworld import Question, read_questions
from evcap.evaluation.predictions import marks, whole_lines
from evcap.gigapixel.ask.answer import BUDGET, Analyst
from evcap.gigapixel.ask.question import analyse
from evcap.gigapixel.tiles.index import TileIndex
from evcap.raster.raster import Raster, RasterError
from evcap.yaml_files import load_yaml


@dataclass(frozen=True)
class Config:
    """questions: file, and images: folder, relative to --data. budget: tiles that a question may have encoded."""

    questions: str
    images: str
    output: str
    preset: str = "embedded"
    budget: int = BUDGET


def made_by(config: Config, analyst: Analyst) -> str:
    """16 hexadecimal digits of all that an answer depends on besides question and image."""
    galleries = [gallery.memory.fingerprint() for gallery in analyst.galleries]
    told = marks(config.preset, analyst.captioner) | {"galleries": galleries, "budget": config.budget}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def answered(path: Path, maker: str) -> set[str]:
    """Ids of the questions that the file has answers to. Raises EvcapError if others made it, or if it is damaged."""
    rows = whole_lines(path) if path.exists() else []
    if any(row.get("made_by") != maker for row in rows):
        raise EvcapError(f"{path} was made with other settings or another model: delete it or choose another output")
    return {row["Question_id"] for row in rows}


def by_picture(questions: list[Question]) -> dict[str, list[Question]]:
    """Raises EvcapError for an image that would be outside of the folder, where an index of it would be too."""
    pictures = defaultdict(list)
    for question in questions:
        name = PurePosixPath(question.image)
        if name.is_absolute() or ".." in name.parts:
            raise EvcapError(f"question '{question.id}': '{name}' is not a path below the folder of the images")
        pictures[question.image].append(question)
    return pictures


def answers(analyst: Analyst, image: Path, folder: Path, questions: list[Question], budget: int) -> Iterator[dict]:
    """Predictions for questions about one image. folder: of its index. Raises RasterError if it cannot be read."""
    if questions:
        with Raster(image) as raster:
            index = analyst.open_index(raster, folder)
            yield from (prediction(analyst, index, question, budget) for question in questions)


def prediction(analyst: Analyst, index: TileIndex, question: Question, budget: int) -> dict:
    """The fields that eval/mme_realworld.py reads."""
    asked = analyse(question.text, None, list(question.choices.values()))
    said = analyst.ask(index, asked, budget)
    place = ord(said.text[1]) - ord("A")  # the Analyst letters choices in their order
    letter, choice = list(question.choices.items())[place]
    boxes = [item.box for item in said.evidence if item.path != "overview"]
    return {"Question_id": question.id, "output": f"({letter}) {choice}", "boxes": boxes}


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    config = load_yaml(config_path, Config)
    if config.budget < 1:
        raise EvcapError(f"{config_path}: budget must be at least 1")
    questions, images, output = read_questions(data / config.questions), data / config.images, Path(config.output)
    pictures = by_picture(questions)
    if not images.is_dir():
        raise EvcapError(f"there is no folder {images} with the images")
    analyst = Analyst.load(config.preset)
    maker, path = made_by(config, analyst), output / "predictions.jsonl"
    done, failures = answered(path, maker), []
    output.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(questions), initial=len(done), desc="questions", unit="question", disable=quiet)
    with path.open("a") as file, bar:
        for name, those in pictures.items():
            bar.set_postfix_str(name)
            todo = [question for question in those if question.id not in done]
            try:
                for row in answers(analyst, images / name, output / "indexes" / f"{name}.evcap", todo, config.budget):
                    file.write(json.dumps(row | {"made_by": maker}) + "\n")
                    file.flush()  # a kill loses the answer that was being found, no more
                    bar.update()
            except RasterError as error:  # other errors are of settings, which no other image would change
                failures.append(str(error))
    report(failures, len(pictures))
    print(f"wrote {path}")
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command(main))
