"""What memory/build.py takes from tiny files of each kind, how it draws, and the memory it writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from cli_tools import run_recipe
from PIL import Image
from places import REPOSITORY
from tiny_run import world

from evcap.datasets.named_images import NamedImage
from evcap.errors import EvcapError
from evcap.memory.memory import VisualNameMemory
from evcap.yaml_files import load_yaml
from memory import build
from memory.build import (
    Config,
    all_candidates,
    box_candidates,
    caption_candidates,
    choose,
    lvis_candidates,
    name_finder,
    phrase_candidates,
    scene_candidates,
)

CONFIG = Config(
    names="names.txt",
    boxes={"tiny/instances_train.json": "tiny/images"},
    captions=["tiny"],
    scenes=["tiny"],
    agree=2,
    exclude=["Light"],
)


@pytest.fixture
def data(tmp_path):
    """Two images of 200 x 100 pixels with boxes, captions and, for the second, a scene."""
    folder = tmp_path / "tiny"
    (folder / "images").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 100)).save(folder / "images" / name)
    images = [
        {"id": 1, "file_name": "a.png", "width": 200, "height": 100},
        {"id": 2, "file_name": "b.png", "width": 200, "height": 100, "scene": "Sea_Side"},
    ]
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
    assert second.open().size == (68, 100)  # the margin ends at the edges of the image


def test_captions_must_agree_on_a_name(data):
    found = list(caption_candidates(CONFIG, data, name_finder(CONFIG, data, set())))
    assert [(item.name, item.path.name, item.source, item.box) for item in found] == [("dog", "a.png", "tiny captions", None)]
    assert found[0].open().size == (200, 100)
    lenient = caption_candidates(replace(CONFIG, agree=1), data, name_finder(CONFIG, data, set()))
    expected = {("cat", "a.png"), ("dog", "a.png"), ("doggy", "b.png"), ("bag", "b.png"), ("hat", "b.png")}
    assert {(item.name, item.path.name) for item in lenient} == expected


def test_names_of_boxes_and_scenes_count_in_captions_too(data):
    finder = name_finder(CONFIG, data, {"doggy bag", "dogs", "light"})
    found = caption_candidates(replace(CONFIG, agree=1), data, finder)
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


def test_phrases_are_crops_of_what_they_are_about(data):
    regions = [
        {"image_id": 1, "bbox": [50, 20, 100, 50], "phrases": ["a light cat with a hat", "the cat", "a dog's bed"]},
        {"image_id": 2, "bbox": [0, 0, 200, 100], "phrases": ["a pair of dogs", "something"]},
        {"image_id": 2, "bbox": [0, 0, 40, 100], "phrases": ["a narrow dog"]},
    ]
    images = json.loads((data / "tiny" / "instances_train.json").read_text())["images"]
    write(data / "tiny" / "entities.json", images=images, annotations=[a | {"types": []} for a in regions])
    config = replace(CONFIG, phrases={"tiny/entities.json": "tiny/images"})
    found = list(phrase_candidates(config, data, name_finder(config, data, set())))
    assert [(item.name, item.path.name) for item in found] == [("cat", "a.png"), ("dog", "a.png"), ("dog", "b.png")]
    assert found[0].box == found[1].box == (40, 15, 160, 75) and found[2].source == "tiny phrase"
    wanted = [
        item for item in all_candidates(replace(config, boxes={}, scenes=[], agree=1, least=2), data) if item.name == "dog"
    ]
    assert {item.path.name for item in wanted} == {"a.png", "b.png"}  # one image each of captions and phrases


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


@pytest.fixture
def lvis(data):
    """An LVIS v1 file in data/lvis of twelve images in data/coco/train2017: a bow of each sense in all, one boat."""
    (data / "lvis").mkdir()
    (data / "coco" / "train2017").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(12):
        path = data / "coco" / "train2017" / f"{number:012d}.jpg"
        Image.fromarray(noise.integers(0, 256, (80, 90, 3), np.uint8)).save(path)
    url = "http://images.cocodataset.org/train2017/{:012d}.jpg"
    objects = [(i, c, [8, 8, 50, 60 + 10 * c]) for i in range(12) for c in (1, 2)] + [
        (0, 1, [5, 5, 8, 8]),
        (3, 3, [0, 0, 9, 9]),
    ]
    categories = ["bow_(weapon)", "bow_(decorative_ribbons)", "boat", "unseen"]
    content = {
        "images": [{"id": i, "coco_url": url.format(i)} for i in range(12)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": box, "area": 9} for n, (i, c, box) in enumerate(objects)
        ],
        "categories": [{"id": n, "name": c, "synonyms": [c]} for n, c in enumerate(categories, 1)],
    }
    write(data / "lvis" / "lvis_v1_train.json", **content)
    return data


def test_lvis_gives_each_picture_once_for_each_name_that_is_said(lvis):
    config = Config(lvis=["lvis/lvis_v1_train.json"])
    found = list(lvis_candidates(config, lvis))
    assert [i.name for i in found] == ["bow"] * 12 + ["boat"]
    assert {(i.source, i.box) for i in found} == {("lvis_v1_train", None)} and len({i.path for i in found}) == 12
    assert len(choose(all_candidates(config, lvis), 10, 0)) == 11


def test_lvis_crops_are_the_largest_objects_of_some_size(lvis):
    found = list(lvis_candidates(Config(lvis=["lvis/lvis_v1_train.json"], lvis_crops=True, margin=0.0), lvis))
    assert [i.name for i in found] == ["bow"] * 24  # the boat is small
    assert {i.box for i in found} == {(8, 8, 58, 78), (8, 8, 58, 88)}


def test_folders_and_lists_are_sources_too(lvis):
    (lvis / "mine" / "Sea_Gull").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(lvis / "mine" / "Sea_Gull" / "1.png")
    (lvis / "list.csv").write_text("image,name,x1,y1,x2,y2\nmine/Sea_Gull/1.png,wine_glass,1,1,5,5\n")
    config = Config(folders=["mine"], csv=["list.csv"], spelling={"wine glass": "cup"})
    gull, cup = all_candidates(config, lvis)
    assert (gull.name, gull.source, gull.label) == ("sea gull", "mine", "Sea_Gull/1.png")
    assert (cup.name, cup.source, cup.box) == ("cup", "list", (1, 1, 5, 5))
    with pytest.raises(EvcapError, match="must give names to find in them"):
        all_candidates(Config(captions=["tiny"]), lvis)


def test_shipped_configs_are_read():
    configs = sorted((REPOSITORY / "memory" / "configs").glob("*.yaml"))
    assert [path.stem for path in configs if load_yaml(path, Config).lvis] == ["lvis"]


def run_build(folder, output: str, code: int = 0, **settings):
    """The recipe in the tiny world."""
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump({"preset": str(world() / "preset.yaml"), "lvis": ["lvis/lvis_v1_train.json"]} | settings))
    given = path, "--data", folder, "--output", folder / output, "--trained", world() / "start.safetensors", "--quiet"
    return run_recipe(build.main, *given, code=code)


def test_command_leaves_out_what_does_not_open(lvis):
    for file in (lvis / "coco" / "train2017").glob("*[1-9].jpg"):  # all but 0 and 10
        file.write_bytes(file.read_bytes()[:500])
    run = run_build(lvis, "memory", code=1, per_name=12, batch=5)
    assert run.stdout == f"{lvis / 'memory'}: 2 entries, 1 names, from 13 candidates\n"
    assert run.stderr.startswith("evcap: 10 of 12 images failed:\n") and len(run.stderr.splitlines()) == 11
    memory = VisualNameMemory.open(lvis / "memory")
    assert (memory.names, memory.images) == (["bow"] * 2, ["000000000000.jpg", "000000000010.jpg"])
    assert memory.sources == ["lvis_v1_train"] * 2 and not (lvis / "memory.part").exists()
