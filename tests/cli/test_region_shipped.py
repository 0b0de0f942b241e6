"""`evcap region` and the certainty of its describer, on the shipped spine with tensors of regions as they are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cli_tools import jsonl, run
from PIL import Image
from region_tools import with_regions

from evcap.errors import EvcapError
from evcap.regions.describe import RegionDescriber
from evcap.regions.model import open_regions
from evcap.regions.views import checked_regions


def test_the_command_says_what_the_describer_says(captioner, tmp_path, examples, monkeypatch):
    """With tensors as they are drawn: what counts is that everything reaches the model and comes back."""
    torch.manual_seed(0)
    model = open_regions(captioner.model, captioner.model.language, None)
    preset = with_regions(tmp_path, model.trained())
    own = RegionDescriber(captioner, model, ["red", "dog"], ["cat", "bus"])
    with Image.open(examples[0]) as image:
        image = image.convert("RGB")
    boxes = [(10, 20, image.width / 2, image.height / 2), (0, 0, image.width, image.height)]
    decoding = replace(captioner.preset.regions.decoding, beams=2, max_length=5)
    expected = own.describe(image, boxes, "caption", ["red"], 2, decoding)
    (tmp_path / "tags.txt").write_text("red\ndog\n")
    (tmp_path / "classes.txt").write_text("cat\nbus\n")
    args = [part for box in boxes for part in ("--box", ",".join(map(str, box)))]
    args += ["--task", "caption", "--words", "red", "--num-captions", 2, "--beams", 2, "--max-length", 5]
    args += ["--tags", tmp_path / "tags.txt", "--classes", tmp_path / "classes.txt", "--preset", preset]
    rows = jsonl(run("region", examples[0], *args, "--format", "jsonl").stdout)
    for row, box, said in zip(rows, boxes, expected, strict=True):
        assert row["box"] == list(box) and row["captions"] == said.captions and row["class"] == said.class_name
        assert [name["name"] for name in row["names"]] == [name.name for name in said.names]
        assert row["tags"] == said.tags and row["views"] == [round(t, 2) for t in said.views] and row["error"] is None


def test_certainty_is_that_of_classes_else_of_tags(captioner, monkeypatch):
    torch.manual_seed(0)
    model = open_regions(captioner.model, captioner.model.language, None)
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    boxes = [(0, 0, 30, 30), (10, 10, 60, 40), (5, 5, 20, 40)]
    describer = RegionDescriber(captioner, model, ["red", "dog"], ["cat", "bus", "sky"])
    looked, tokens = [], describer._tokens
    monkeypatch.setattr(describer, "_tokens", lambda image, crops: looked.extend(crops.tolist()) or tokens(image, crops))
    by_class = describer.certainty(image, boxes, batch_size=2)
    assert sorted(looked) == sorted([*map(list, boxes), [0, 0, 60, 40]])  # the whole image once
    describer.set_classes([])
    by_tag = describer.certainty(image, boxes)
    assert by_class.shape == by_tag.shape == (3,) and ((by_tag > 0) & (by_tag < 1)).all()
    describer.set_classes(["cat", "bus", "sky"])
    for box, of_class, of_tag in zip(boxes, by_class, by_tag, strict=True):
        region = checked_regions([box], *image.size)
        (_, queries), *_ = describer.query_features(image, region, np.array([[0.0, 1.0, 1.0]]))
        with torch.inference_mode():
            tags = model.tag_head(queries, describer.tags.features).sigmoid().max().item()
        assert of_class == pytest.approx(describer.scores(queries, describer.classes.features).max().item(), abs=1e-4)
        assert of_tag == pytest.approx(tags, abs=1e-4)
    describer.set_classes([])
    describer.set_tags([])
    with pytest.raises(EvcapError, match="by classes or tags"):
        describer.certainty(image, boxes)
