"""Tools for tests of `evcap region`: a describer without a model, presets with tensors of regions, files of boxes."""

import json
from collections import namedtuple
from pathlib import Path

import numpy as np
from cli_tools import jsonl

from evcap.config import assets_folder, load_preset
from evcap.regions.describe import RegionDescription
from evcap.regions.views import checked_regions
from evcap.weights.wheels import write_safetensors

Hit = namedtuple("Hit", "name similarity query")


class FakeDescriber:
    """Tells the colour in the middle of a box. An image 13 pixels wide is too much for it. calls: boxes of each."""

    def __init__(self):
        self.calls, self.tags, self.classes, self.options = [], ["blue"], ["thing"], {}

    def set_tags(self, tags):
        self.tags = tags

    def set_classes(self, classes):
        self.classes = classes

    def describe(self, image, boxes, **options):
        self.calls.append(len(boxes))
        self.options = options
        if image.width == 13:
            raise RuntimeError("the model\nchoked")
        count = options["num_captions"]
        return [self._said(image, box, count) for box in checked_regions(boxes, *image.size).tolist()]

    def _said(self, image, box, count):
        centre = (int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2))
        texts = [seen(image, centre), *["again"] * (count - 1)]
        return RegionDescription(tuple(box), texts, [Hit("sky", 0.61234567, 3)], self.tags, self.classes[0], [0.0, 0.1, 0.2])

    def certainty(self, image, boxes, batch_size=32):
        return np.arange(len(boxes), dtype=np.float32)


def seen(image, centre) -> str:
    return "colour {} {} {}".format(*image.getpixel(centre))


def with_regions(folder: Path, tensors: dict) -> Path:
    """The YAML of a preset that has these tensors of regions, and all else of the shipped one."""
    assets = folder / "assets"
    assets.mkdir()
    for path in assets_folder("embedded", load_preset("embedded")).iterdir():
        if path.name != "regions.safetensors":
            (assets / path.name).symlink_to(path)
    write_safetensors(tensors, assets / "regions.safetensors")
    (folder / "preset.yaml").write_text("base: embedded\nassets: assets\n")
    return folder / "preset.yaml"


def lines(region, *args, code=0) -> list[dict]:
    return jsonl(region(*args, "--format", "jsonl", code=code).stdout)


def write_csv(rows, path="boxes.csv", columns="file,x1,y1,x2,y2") -> Path:
    Path(path).write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return Path(path)


def write_coco(images, annotations, path="boxes.json") -> Path:
    """images: {id: file}. annotations: (id, image's id, bbox)."""
    content = {
        "images": [{"id": key, "file_name": file} for key, file in images.items()],
        "annotations": [{"id": key, "image_id": image, "bbox": bbox} for key, image, bbox in annotations],
    }
    Path(path).write_text(json.dumps(content))
    return Path(path)
