"""Score retrieval and answers on test scenes of data/make_mosaic.py, beside what they are to be better than.

    python eval/scenes.py eval/configs/scenes-val.yaml --data DIR

Each scene is indexed once, beside its image; then its questions are asked in four ways (fast path, slow path, the slow one
where the fast one finds nothing, and both in one pass, which is what `evcap ask` does) and of two others: the whole image
reduced to one input of the model, and the rule of the public ImageRAG release (arXiv 2411.07688) on its grid.
Writes metrics.json, results.md and predictions.jsonl into the output folder.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from evcap.cli.console import command
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import shown, tqdm
from evcap.config import load_preset
from evcap.datasets.scenes import Scene, read_scene
from evcap.evaluation.places import accuracy, finds, mean_absolute_error, recall_at
from evcap.files import write_text
from evcap.gigapixel.ask.question import analyse
from evcap.gigapixel.search.calibration import calibrated
from evcap.gigapixel.search.retrieval import imagerag_selection, softmax
from evcap.gigapixel.search.scene_search import SceneConfig, Searcher, whole_index
from evcap.language.sentences import sentence_embedder
from evcap.language.similarity import nearest_query
from evcap.memory.keys import mean_keys
from evcap.progress import Progress
from evcap.raster.raster import Raster
from evcap.yaml_files import load_yaml

RANKS = (1, 5, 10)
LARGEST = 0.25  # of the image; a larger box is not counted as found (facts of ImageRAG's evaluation)
WAYS = {"fast": "fast path", "slow": "slow path", "then": "fast, then slow", "both": "both in one pass (evcap ask)"}


@dataclass(frozen=True)
class Found:
    """Boxes (R,4), best first, and how many places were found for sure."""

    boxes: np.ndarray
    count: int


class Asked:
    """One scene with its indexes, and the ways to look for a phrase in it."""

    def __init__(self, searcher: Searcher, path: Path, config: SceneConfig, progress: Progress):
        self.searcher, self.scene = searcher, read_scene(path)
        self._found: dict[tuple[str, str], Found] = {}
        self.raster = Raster(path.with_name(self.scene.image))
        self.index = whole_index(self.raster, searcher.tower, config.plan, progress)
        self.reference = whole_index(self.raster, searcher.tower, config.reference_plan, progress)
        overview = self.raster.read((0, 0, self.raster.width, self.raster.height), (searcher.tower.image_size,) * 2)[0]
        self.overview = Image.fromarray(overview)

    def look(self, phrase: str, way: str) -> Found:
        """By one of WAYS."""
        if way == "then":
            fast = self.look(phrase, "fast")
            return fast if fast.count else self.look(phrase, "slow")
        if (phrase, way) not in self._found:
            (places,) = self.searcher.retriever.find(self.index, [phrase], way)
            boxes = np.array([place.box for place in places]).reshape(-1, 4)
            self._found[phrase, way] = Found(boxes, sum(place.sure for place in places))
        return self._found[phrase, way]

    def look_at_once(self, phrase: str) -> Found:
        """The whole image as one input: it is there if that scores above the threshold for one tile; the boxes are the cells
        that the query nearest to the phrase looks at most."""
        retriever, captioner = self.searcher.retriever, self.searcher.captioner
        queries = captioner.query_features([self.overview])
        scores = retriever.scores([queries.numpy()], [phrase])[0]
        way = "both" if scores.slow is not None else "fast"
        cosines = torch.nn.functional.normalize(queries[0], dim=-1) @ self.searcher.tower.read([phrase])[0]
        heat = captioner.attention(self.overview)[int(cosines.argmax())]
        rows, columns = np.unravel_index(np.argsort(-heat, axis=None, kind="stable")[: max(RANKS)], heat.shape)
        cell = np.array([self.raster.width / heat.shape[1], self.raster.height / heat.shape[0]])
        corners = np.stack([columns, rows], axis=1)
        boxes = np.concatenate([corners * cell, (corners + 1) * cell], axis=1)
        return Found(boxes, int(scores.of(way)[0] > retriever.threshold(way, 1)))

    def look_by_reference(self, phrase: str) -> Found:
        """The release's rule: boxes by probability; what it selects on the fast path counts as found, or nothing."""
        queries = [rows for _, rows in self.reference.chunks()]
        boxes = self.reference.plan.boxes(self.reference.numbers())
        texts = self._cosines(queries, self.searcher.tower.read([phrase]))
        selected = imagerag_selection(texts)
        ranked, confidences = texts, softmax(100 * texts)
        if not selected:
            gallery = self.searcher.gallery
            own = gallery.match(sentence_embedder()([phrase]).numpy()[0])
            if own:
                keys = np.concatenate([mean_keys(torch.from_numpy(rows)).numpy() for rows in queries])
                ranked = gallery.prototypes[own] @ keys.T
                confidences = softmax(100 * ranked)
        order = np.argsort(-confidences.max(0), kind="stable")[: max(RANKS)]
        return Found(boxes[order], len({tile for tile, _ in selected}))

    @staticmethod
    def _cosines(queries: list[np.ndarray], sentences: torch.Tensor) -> np.ndarray:
        return np.concatenate([nearest_query(torch.from_numpy(rows).float(), sentences).numpy() for rows in queries]).T

    def chance(self, label: str) -> dict[int, float]:
        """Recall of tiles drawn at random, by their finest level, estimated from 2,000 draws."""
        level = self.index.plan.levels[-1]
        boxes, targets = self.index.plan.boxes(slice(level.start, level.stop)), targets_of(self.scene, label)
        hits, random = finds(boxes, targets, math.inf), np.random.default_rng(0)
        draws = [random.choice(len(boxes), max(RANKS), replace=False) for _ in range(2000)]
        return {k: float(np.mean([hits[d[:k]].any(0).sum() / min(k, len(targets)) for d in draws])) for k in RANKS}


def targets_of(scene: Scene, label: str) -> np.ndarray:
    return np.array([tile.box for tile in scene.planted if tile.label == label]).reshape(-1, 4)


def ask_all(asked: Asked, look: Callable[[str], Found]) -> list[dict]:
    """A row for each question of a scene: what was asked, what is true, what was answered, recall where there are targets."""
    rows = []
    for question in asked.scene.questions:
        found = look(analyse(question.question).phrases[0])
        row = {"scene": asked.scene.image, "kind": question.kind, "label": question.label, "truth": question.answer}
        row |= {"question": question.question, "count": found.count}
        row["answer"] = found.count > 0 if question.kind == "presence" else found.count
        targets = targets_of(asked.scene, question.label)
        if len(targets) and question.kind == "presence":
            most = LARGEST * asked.scene.width * asked.scene.height
            row |= {f"recall@{k}": recall_at(k, found.boxes, targets, most) for k in RANKS}
        rows.append(row)
    return rows


def summary(rows: list[dict]) -> dict[str, float]:
    """Percentages, and the mean error of counts, over all questions of one way."""
    told = {f"recall@{k}": 100 * float(np.mean([r[f"recall@{k}"] for r in rows if f"recall@{k}" in r])) for k in RANKS}
    for kind in ("presence", "count"):
        here = [r for r in rows if r["kind"] == kind]
        told[kind] = 100 * accuracy([r["answer"] for r in here], [r["truth"] for r in here])
    told["count error"] = mean_absolute_error([r["answer"] for r in here], [r["truth"] for r in here])
    return told


def markdown(scores: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(scores.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells(row, columns))} |" for name, row in scores.items())])


def cells(row: dict[str, float], columns: list[str]) -> list[str]:
    """Numbers of a row; chance has not all of them."""
    return ["" if c not in row else f"{row[c]:.2f}" if c == "count error" else f"{row[c]:.1f}" for c in columns]


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    config = load_yaml(config_path, SceneConfig)
    paths = config.paths(data)
    calibrated(load_preset(config.preset))
    searcher = Searcher.open(config)
    rows: dict[str, list[dict]] = {}
    chances: list[dict[int, float]] = []
    for path in tqdm(paths, desc="scenes", unit="scene", disable=quiet):
        asked = Asked(searcher, path, config, shown(quiet))
        looks = {name: partial(asked.look, way=way) for way, name in WAYS.items()}
        looks |= {"whole image as one input": asked.look_at_once, "ImageRAG's rule, grid": asked.look_by_reference}
        for name, look in looks.items():
            rows.setdefault(name, []).extend(ask_all(asked, look))
        chances += [asked.chance(q.label) for q in asked.scene.questions if q.kind == "presence" and q.answer]
    scores = {name: summary(those) for name, those in rows.items()}
    scores["chance"] = {f"recall@{k}": 100 * float(np.mean([c[k] for c in chances])) for k in RANKS} | {"presence": 50.0}
    about = {"scores": scores, "scenes": [p.name for p in paths], "questions": len(next(iter(rows.values())))}
    about["command"] = shlex.join(["python", *sys.argv])
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "metrics.json", json.dumps(about, indent=1) + "\n")
    write_text(output / "results.md", markdown(scores) + "\n")
    lines = (json.dumps({"way": name} | row) + "\n" for name, those in rows.items() for row in those)
    write_text(output / "predictions.jsonl", "".join(lines))
    table = Table("", *next(iter(scores.values())))
    for name, row in scores.items():
        table.add_row(name, *cells(row, list(next(iter(scores.values())))))
    Console().print(table)


if __name__ == "__main__":
    typer.run(command(main))
