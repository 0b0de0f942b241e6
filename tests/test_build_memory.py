"""What memory/build.py takes from tiny COCO files, and how it draws."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from evcap.errors import EvcapError
from memory.build import Config, NamedImage, all_candidates, box_candidates, caption_candidates, choose, scene_candidates

CONFIG = Config(names="names.txt", boxes=["tiny"], captions=["tiny"], scenes=["tiny"], agree=2, exclude=["Light"])


@pytest.fixture
def data(tmp_path):
    """Two pictures of 200 x 100 pixels with boxes, captions and, for the second, a scene."""
    folder = tmp_path / "tiny"
    (folder / "images").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 100)).save(folder / "images" / name)
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "scene": "Sea_Side"}]
    boxes = [
        {"image_id": 1, "category_id": 7, "bbox": [50, 20, 100, 50]},
        {"image_id": 1, "category_id": 7, "bbox": [2, 2, 60, 97]},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 200, 47]},
        {"image_id": 2, "category_id": 7, "bbox": [0, 0, 100, 100], "iscrowd": 1},
    ]
    captions = [(1, "Two dogs and a light."), (1, "A dog, a dog!"), (1, "The light on a cat"), (2, "a doggy bag with a hat")]
    texts = [{"image_id": i, "caption": text} for i, text in captions]
    write(folder / "instances_train.json", images=images, annotations=boxes, categories=[{"id": 7, "name": "Wine_Glass"}])
    write(folder / "captions_train.json", images=images, annotations=texts)
    (tmp_path / "names.txt").write_text("dog/doggy\ncat\nlight\nbag_(sack)/hat\n")
    return tmp_path


def write(path, **content):
    path.write_text(json.dumps(content))


def test_boxes_are_large_enough_and_keep_a_margin_inside_the_picture(data):
    first, second = box_candidates(CONFIG, data)
    assert (first.name, first.path.name, first.source) == ("wine glass", "a.png", "tiny box")
    assert first.box == (40, 15, 160, 75)
    assert first.open().size == (120, 60)
    assert second.box == pytest.approx((-4, -7.7, 68, 108.7))
    assert second.open().size == (68, 100)  # the margin ends at the edges of the picture


def test_captions_must_agree_on_a_name(data):
    found = list(caption_candidates(CONFIG, data, set()))
    assert [(item.name, item.path.name, item.source, item.box) for item in found] == [("dog", "a.png", "tiny captions", None)]
    assert found[0].open().size == (200, 100)
    lenient = caption_candidates(replace(CONFIG, agree=1), data, set())
    expected = {("cat", "a.png"), ("dog", "a.png"), ("doggy", "b.png"), ("bag", "b.png"), ("hat", "b.png")}
    assert {(item.name, item.path.name) for item in lenient} == expected


def test_names_of_boxes_and_scenes_count_in_captions_too(data):
    found = caption_candidates(replace(CONFIG, agree=1), data, {"doggy bag", "dogs", "light"})
    assert {i.name for i in found} == {"cat", "dog", "dogs", "doggy bag", "hat"}  # "light" stays excluded


def test_rare_names_of_captions_are_left_out_but_for_those_with_boxes_or_scenes(data):
    spelled = replace(CONFIG, agree=1, spelling={"wine glass": "dog", "sea side": "hat"})

    def names(least):
        return sorted(item.name for item in all_candidates(replace(spelled, least=least), data))

    boxes_and_scenes = ["dog", "dog", "hat"]
    assert names(1) == sorted([*boxes_and_scenes, "bag", "cat", "dog", "doggy", "hat"])
    assert names(2) == sorted([*boxes_and_scenes, "dog", "hat"])


def test_excluded_names_are_left_out_of_every_source(data):
    config = replace(CONFIG, agree=1, exclude=["wine_glass", "Sea side", "dog"])
    assert {item.name for item in all_candidates(config, data)} == {"bag", "cat", "doggy", "hat", "light"}


def test_scenes(data):
    assert [(item.name, item.path.name) for item in scene_candidates(CONFIG, data)] == [("sea side", "b.png")]


def test_a_missing_picture_is_told(data):
    (data / "tiny" / "images" / "b.png").unlink()
    with pytest.raises(EvcapError, match="b.png"):
        list(scene_candidates(CONFIG, data))


def test_choose_draws_at_most_so_many_a_name_and_the_same_again(data):
    many = [NamedImage(name, data / f"{name}{i}.png", "s") for i in range(20) for name in ("dog", "cat")]
    few = [NamedImage("ant", data / f"ant{i}.png", "s") for i in range(2)]
    chosen = choose(many + few, 5, seed=3)
    assert [item.name for item in chosen] == ["ant"] * 2 + ["cat"] * 5 + ["dog"] * 5
    assert len(set(chosen)) == 12 and set(few) <= set(chosen) <= set(many + few)
    assert choose(many + few, 5, seed=3) == chosen != choose(many + few, 5, seed=4)
    assert choose([], 5, seed=0) == []
