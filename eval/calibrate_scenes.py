"""Choose the thresholds of a preset's `retrieval` on scenes with known content, which must not be those that are scored.

    python data/make_mosaic.py DIR/scenes --data DIR --split train --scenes 4
    python eval/calibrate_scenes.py eval/configs/scenes-train.yaml --data DIR

Only what is nowhere in a scene is asked for: of what is there an encoder finds the tiles that it was trained on too easily. For
each path the level is that which one in ten such phrases exceeds somewhere in a scene (a constant rate of false alarms, as is
usual for detection in aerial images). `lead` is how far the best of all these phrases exceeds the level of both paths together.
`slope` is how far the best of n tiles that do not show a phrase rises with ln(n): the mean excess of their scores above the
99th percentile (peaks over threshold, exponential tail). Prints the lines for the preset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from evcap.cli.console import command
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import shown, tqdm
from evcap.datasets.scenes import read_scene
from evcap.gigapixel.ask.question import analyse
from evcap.gigapixel.search.scene_search import SceneConfig, Searcher, whole_index
from evcap.raster.raster import Raster
from evcap.yaml_files import load_yaml

PATHS = ("fast", "slow", "both")
TAIL = 0.99
FALSE_ALARMS = 0.1


def mean_excess(scores: np.ndarray) -> float:
    start = np.quantile(scores, TAIL)
    return float((scores[scores > start] - start).mean())


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see eval/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    config = load_yaml(config_path, SceneConfig)
    paths = config.paths(data)
    searcher = Searcher.open(config)
    best: dict[str, list[float]] = {path: [] for path in PATHS}
    tiles, excess = [], []
    for path in tqdm(paths, desc="scenes", unit="scene", disable=quiet):
        scene = read_scene(path)
        with Raster(path.with_name(scene.image)) as raster:
            index = whole_index(raster, searcher.tower, config.plan, shown(quiet))
            absent = [analyse(question.question).phrases[0] for question in scene.questions if question.answer is False]
            excess += [mean_excess(scores.of("both")) for scores in searcher.retriever.scores(index, absent)]
            tiles += [len(index.numbers())] * len(absent)
            for way in PATHS:
                best[way] += [places[0].score for places in searcher.retriever.find(index, absent, way)]
    slope = float(np.mean(excess))
    above = {way: best[way] - slope * np.log(np.array(tiles) / 1000) for way in PATHS}
    level = {way: np.quantile(above[way], 1 - FALSE_ALARMS) for way in PATHS}
    print(f"# {len(paths)} scenes, {len(tiles)} phrases that are nowhere in them\nretrieval:")
    for way in PATHS:
        print(f"  {way}: {level[way]:.3f}")
    print(f"  slope: {slope:.3f}\n  lead: {above['both'].max() - level['both']:.3f}")


if __name__ == "__main__":
    typer.run(command(main))
