"""Choose the thresholds of a preset's `retrieval` on scenes with known content, which must not be those that are scored.

    python data/make_mosaic.py HELD/scenes --data HELD --scenes 5
    python eval/calibrate_scenes.py eval/configs/scenes-held-out.yaml --data HELD

HELD holds out pictures from the encoder of the config (data/hold_out.py): what an encoder was trained on it finds without
fault, whatever the threshold. For each path the level is that at which most questions of presence are answered right, of equal
ones those with the smallest error of counts, of these the middle one. `slope` is how far the best of n tiles that do not show
a phrase rises with ln(n): the mean excess of their scores above the 99th percentile (peaks over threshold, exponential tail).
Prints the lines for the preset.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm import tqdm

from evcap.config import load_yaml
from evcap.console import DataFolder, NoBars, command
from evcap.uhr.question import analyse
from evcap.uhr.raster import Raster
from evcap.uhr.scenes import Question, read_scene
from evcap.uhr.trials import SceneConfig, Searcher, whole_index

PATHS = ("fast", "slow", "both")
TAIL = 0.99

Asked = tuple[Question, list[float], int]  # the scores of its places, best first, and the number of tiles


def mean_excess(scores: np.ndarray) -> float:
    start = np.quantile(scores, TAIL)
    return float((scores[scores > start] - start).mean())


def best_level(asked: list[Asked], slope: float) -> tuple[float, float, float]:
    """(level for 1,000 tiles, share of presence answered right, mean error of counts)."""
    rows = [(q, [s - slope * math.log(tiles / 1000) for s in scores]) for q, scores, tiles in asked]
    values = np.unique(np.concatenate([scores for _, scores in rows]))
    tried = []
    for level in (values[1:] + values[:-1]) / 2:
        counts = [(q, sum(s > level for s in scores)) for q, scores in rows]
        right = np.mean([(count > 0) == q.answer for q, count in counts if q.kind == "presence"])
        error = np.mean([abs(count - q.answer) for q, count in counts if q.kind == "count"])
        tried.append((-right, error, level))
    best = sorted(row for row in tried if row[:2] == min(tried)[:2])
    right, error, level = best[len(best) // 2]
    return float(level), float(-right), float(error)


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    config = load_yaml(config_path, SceneConfig)
    paths = config.paths(data)
    searcher = Searcher.open(config)
    asked: dict[str, list[Asked]] = {path: [] for path in PATHS}
    excess = []
    for path in tqdm(paths, desc="scenes", unit="scene", disable=quiet):
        scene = read_scene(path)
        with Raster(path.with_name(scene.image)) as raster:
            index = whole_index(raster, searcher.tower, config.plan, quiet)
            for question in scene.questions:
                phrase = analyse(question.question).phrases[:1]
                if question.answer is False:
                    excess.append(mean_excess(searcher.retriever.scores(index, phrase)[0].of("both")))
                for way in PATHS:
                    (places,) = searcher.retriever.find(index, phrase, way)
                    asked[way].append((question, [place.score for place in places], len(index.numbers())))
    slope = float(np.mean(excess))
    print(f"# {len(paths)} scenes, {len(asked['both'])} questions")
    for way in PATHS:
        level, right, error = best_level(asked[way], slope)
        print(f"{way}: {level:.3f}  # presence {right:.1%}, mean error of counts {error:.2f}")
    print(f"slope: {slope:.3f}")


if __name__ == "__main__":
    typer.run(command(main))
