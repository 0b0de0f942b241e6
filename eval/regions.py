"""Score what is said of regions whose boxes are given.

    python eval/regions.py captions phrases colours rename --data DIR --output runs/regions
    python eval/regions.py classes --data DIR --views 0,0.4,1 --output runs/regions-fixed

captions: of phrase boxes against their phrases, over all and per type. phrases: the box of its image that a phrase means, by
the region-text score, and by the contrast of photos with the crop of each box as a photo. colours: of clothing and vehicles,
of eleven. rename: do captions follow a renaming in the memory, as eval/memory_matters.py asks of photos. classes: of COCO's
boxes by the raw region-text score, by the size of boxes in the photo as it was taken.

--views: "dynamic" (by the hash), "attributes" or "caption" (with the task's prior), "random", or t of fixed views. Views are
encoded in the half precision of training and kept on disk, all else runs as when somebody asks. Each part writes
FOLDER/PART.json.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

import evcap
from evcap.captioner import Caption, Captioner
from evcap.cli.console import command
from evcap.cli.options import DataFolder, NoBars, Preset
from evcap.cli.progress import shown, tqdm
from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import per_image_cider
from evcap.evaluation.regions import class_accuracy, class_box_ap, find_boxes, means_by_type, score_region_captions
from evcap.evaluation.renames import rates, rename_test
from evcap.files import write_text
from evcap.language.similarity import TextTower, nearest_query
from evcap.memory.memory import VisualNameMemory
from evcap.raster.geo import areas
from evcap.regions.control_words import clean_caption
from evcap.regions.describe import RegionDescriber
from evcap.regions.views import TASK_RATIOS, random_ratios
from evcap.training.region_data import RegionFile, Sample, cached_views, hashed_ratios, read_samples
from evcap.training.region_words import COLOURS, in_each_colour
from evcap.yaml_files import read_yaml

ENTITIES = RegionFile("flickr_entities/entities_{split}.json", "flickr8k/images")
BOXES = RegionFile("coco_plus/boxes_{split}.json", "coco_plus/images", classes=True)
RENAMES = Path(__file__).parent / "configs" / "memory-matters.yaml"
RENAMED = 15  # names, one at a time
BATCH = 32  # regions


@dataclass
class Looked:
    """Regions with their Q (N,32,W), that of their first view as if it were a photo, and who describes them."""

    describer: RegionDescriber
    samples: list[Sample]
    queries: torch.Tensor
    as_photos: torch.Tensor | None = None

    @property
    def captioner(self) -> Captioner:
        return self.describer.captioner


def look(describer: RegionDescriber, data: Path, file: RegionFile, views: str, limit: int, quiet: bool) -> Looked:
    """Q of the regions of a file, in views by a rule."""
    samples = read_samples([file], data, 0.0, 0)[: limit or None]
    count = describer.config.views
    if views in ("dynamic", *TASK_RATIOS):
        ratios = hashed_ratios(samples, count, "auto" if views == "dynamic" else views)
    elif views == "random":
        ratios = random_ratios(len(samples), count, torch.Generator().manual_seed(0))
    else:
        ratios = np.tile([float(t) for t in views.split(",")], (len(samples), 1))
    kept = cached_views(describer.captioner.model, samples, ratios, data, shown(quiet))
    rows, photos, everything = [], [], np.arange(ratios.shape[1])[None]
    with torch.inference_mode():
        for start in range(0, len(samples), BATCH):
            tokens, boxes = kept.take(range(start, min(start + BATCH, len(samples))), everything)
            rows.append(describer.model.queries(tokens, boxes))
            photos.append(describer.captioner.model.query_features(tokens[:, 0]))
    return Looked(describer, samples, torch.cat(rows), torch.cat(photos))


def say(looked: Looked, quiet: bool = False) -> list[Caption]:
    """Captions of all regions, with their names."""
    said = []
    with tqdm(total=len(looked.queries), desc="captions", unit="region", disable=quiet) as bar:
        for batch in looked.queries.split(BATCH):
            for captions, names, _, _ in looked.describer.tell(batch, (), 1, looked.describer.config.decoding):
                said.append(Caption(captions[0], captions, names))
            bar.update(len(batch))
    return said


def captions(looked: Looked, quiet: bool) -> tuple[dict, str]:
    """Captions of phrase boxes against their phrases: METEOR, CIDEr and the rest, over all and per type."""
    said = [caption.caption for caption in say(looked, quiet)]
    references = [[clean_caption(phrase) for phrase in sample.region.phrases] for sample in looked.samples]
    scores = score_region_captions(said, references, [sample.region.types for sample in looked.samples])
    each = per_image_cider(dict(enumerate(said)), dict(enumerate(references)))
    rows = [
        {"file": s.region.path.name, "box": s.region.box, "caption": c, "references": r, "cider": each[number]}
        for number, (s, c, r) in enumerate(zip(looked.samples, said, references, strict=True))
    ]
    told = ", ".join(f"{name} {value:.1f}" for name, value in scores["overall"].items())
    return {"scores": scores, "regions": rows}, told


def classes(looked: Looked, quiet: bool) -> tuple[dict, str]:
    """Classes of COCO's boxes by the raw region-text score, over all and by the size of boxes in the photo as it was taken."""
    names = looked.describer.classes
    if unknown := {sample.region.phrases[0] for sample in looked.samples} - set(names.texts):
        raise EvcapError(f"the preset's classes.txt has no class '{min(unknown)}', which boxes of the set have")
    logits = torch.cat([looked.describer.scores(batch, names.features) for batch in looked.queries.split(BATCH)]).numpy()
    labels = np.array([names.texts.index(sample.region.phrases[0]) for sample in looked.samples])
    boxes = np.array([sample.region.real_box for sample in looked.samples])
    accuracy = class_accuracy(logits, labels, areas(boxes))
    right = logits.argmax(1) == labels
    balanced = np.mean([right[labels == label].mean() for label in np.unique(labels)])
    images = [sample.region.image_id for sample in looked.samples]
    figures = {
        "regions": len(labels),
        "accuracy": accuracy,
        "mean over classes": float(balanced),
        "always person": float((labels == names.texts.index("person")).mean()),
        "box AP": class_box_ap(boxes, images, logits, labels),
        "right": right.astype(int).tolist(),
    }
    told = ", ".join(f"{name} {100 * value:.1f}" for name, value in accuracy.items()) + f", mean {100 * balanced:.1f}"
    return figures, told


def phrases(looked: Looked, quiet: bool) -> tuple[dict, str]:
    """The box of its image that a phrase means, by the region-text score and by the contrast of photos."""
    by_image = defaultdict(list)
    for number, sample in enumerate(looked.samples):
        by_image[sample.region.path].append(number)
    photo_level = TextTower(looked.captioner.model.text_projection)
    found, tower, boxes, truths, types = [], [], [], [], []
    for numbers in tqdm(by_image.values(), desc="phrases", unit="img", disable=quiet):
        regions = [looked.samples[number].region for number in numbers]
        own = np.array([region.box for region in regions])
        told = list(dict.fromkeys(phrase for region in regions for phrase in region.phrases))
        queries = looked.queries[numbers]
        features = looked.describer.texts([clean_caption(phrase) for phrase in told])
        scores = looked.describer.scores(queries, features).T.numpy()
        photo = nearest_query(looked.as_photos[numbers], photo_level(told)).T.numpy()
        for place, phrase in enumerate(told):
            meant = np.array([phrase in region.phrases for region in regions])
            found.append(scores[place])
            tower.append(photo[place])
            boxes.append(own)
            truths.append(own[meant])
            types.append(sorted({kind for region in np.array(regions, object)[meant] for kind in region.types}))
    right, chance = find_boxes(found, boxes, truths)
    photo_right, _ = find_boxes(tower, boxes, truths)
    figures = {
        "phrases": len(right),
        "accuracy": means_by_type(right, types),
        "chance": means_by_type(chance, types),
        "contrast of photos": means_by_type(photo_right, types),
        "standard error": float(right.std() / len(right) ** 0.5),
    }
    return figures, (f"right {100 * right.mean():.1f}, chance {100 * chance.mean():.1f}, photo {100 * photo_right.mean():.1f}")


def colours(looked: Looked, quiet: bool) -> tuple[dict, str]:
    """The colour of clothing and vehicles whose phrases name one alone: a {colour} {thing} of eleven colours."""
    right, of = [], defaultdict(list)
    for sample, queries in zip(looked.samples, looked.queries, strict=True):
        region = sample.region
        asked = [clean_caption(phrase).replace("grey", "gray") for phrase in region.phrases]
        told = {word for phrase in asked for word in phrase.split()} & set(COLOURS)
        if not {"clothing", "vehicles"} & set(region.types) or len(told) != 1:
            continue
        own, texts = next(choice for phrase in asked if (choice := in_each_colour(phrase)))
        best = looked.describer.scores(queries[None], looked.describer.texts(texts))[0].argmax().item()
        right.append(int(best == own))
        of[COLOURS[own]].append(right[-1])
    if not right:
        raise EvcapError("no region of clothing or vehicles has phrases that name one colour of eleven")
    error = statistics.pstdev(right) / len(right) ** 0.5
    most = max(len(row) for row in of.values()) / len(right)
    figures = {
        "regions": len(right),
        "accuracy": statistics.fmean(right),
        "standard error": error,
        "right": right,
    }
    figures |= {"most frequent colour": most, "by colour": {name: [sum(row), len(row)] for name, row in of.items()}}
    return figures, (f"{100 * statistics.fmean(right):.1f} ± {100 * error:.1f} % of {len(right)}, one colour {100 * most:.1f}")


def rename(looked: Looked, quiet: bool) -> tuple[dict, str]:
    """Do captions of regions follow a renaming in the memory? As eval/memory_matters.py asks of photos."""

    def caption(memory: VisualNameMemory, rows: list[int], title: str) -> list[Caption]:
        looked.captioner.memory = memory
        return say(replace(looked, queries=looked.queries[rows]), quiet=True)

    before, renames = say(looked, quiet), read_yaml(RENAMES)["renames"]
    results, passed_over = rename_test(caption, looked.captioner.memory, before, renames, RENAMED, partial(print, flush=True))
    overall = rates(results)
    told = f"{overall['follows']:.1f} % of captions follow a renaming; passed over: {sorted(passed_over)}"
    return {"regions": len(before), "rates": overall, "renames": results}, told


class Part(StrEnum):
    captions = "captions"
    phrases = "phrases"
    colours = "colours"
    rename = "rename"
    classes = "classes"


PARTS = {Part.captions: captions, Part.phrases: phrases, Part.colours: colours, Part.rename: rename, Part.classes: classes}


@command
def main(
    parts: Annotated[list[Part], typer.Argument(help="What is scored.")],
    data: DataFolder,
    output: Annotated[Path, typer.Option(help="Folder of the figures.")],
    views: Annotated[str, typer.Option(help="dynamic, attributes, caption, random, or t of fixed views: 0,0.4,1.")] = "dynamic",
    preset: Preset = "embedded",
    trained: Annotated[Path | None, typer.Option(help="Region tensors in place of the preset's.")] = None,
    split: Annotated[str, typer.Option(help="test, or val for choices.")] = "test",
    limit: Annotated[int, typer.Option(help="The first so many regions; 0 = all.")] = 0,
    without_names: Annotated[bool, typer.Option("--without-names", help="With an empty memory.")] = False,
    quiet: NoBars = False,
) -> None:
    """Score what is said of regions whose boxes are given."""
    captioner = evcap.load(preset)
    if without_names:
        captioner.memory = VisualNameMemory.empty(captioner.memory.keys.shape[1], captioner.memory.encoder)
    describer = RegionDescriber.open(captioner, preset, trained)
    output.mkdir(parents=True, exist_ok=True)
    looked: dict[bool, Looked] = {}
    for part in parts:
        in_classes = part == Part.classes
        if in_classes not in looked:
            file = BOXES if in_classes else ENTITIES
            file = replace(file, file=file.file.format(split=split))
            looked[in_classes] = look(describer, data, file, views, limit, quiet)
        figures, told = PARTS[part](looked[in_classes], quiet)
        figures = {"command": shlex.join(["python", *sys.argv]), "views": views} | figures
        write_text(output / f"{part}.json", json.dumps(figures, indent=1) + "\n")
        print(f"{part}, {views}: {told}", flush=True)


if __name__ == "__main__":
    typer.run(main)
