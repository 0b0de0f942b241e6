"""Readers of COCO-format files and name lists, on good and bad files."""

import json
from pathlib import Path

import pytest

from evcap.datasets.coco import (
    CaptionedImage,
    Instance,
    read_coco_captions,
    read_instances,
    read_lvis,
    read_name_list,
    read_vocabulary,
)
from evcap.errors import EvcapError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.jpg and sub/b.jpg, which the readers only look for, never open."""
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def content(**changes) -> dict:
    """A sound file of both kinds: two images, three captions (one of an image that is not listed), one object."""
    return {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "sub/b.jpg", "scene": "harbor"}],
        "annotations": [
            {"image_id": 3, "caption": "Boats.", "category_id": 1, "bbox": [10, 20, 5, 4]},
            {"image_id": 7, "caption": "A dog.", "category_id": 2, "bbox": [0.5, 1, 2, 3], "area": 4.5, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "boat"}, {"id": 2, "name": "dog"}],
    } | changes


def write(folder: Path, data) -> Path:
    path = folder / "set.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_captions_in_the_order_of_the_file(folder):
    data = content()
    data["annotations"] += [{"image_id": 7, "caption": "Un chien à gauche."}, {"image_id": 99, "caption": "Not listed."}]
    assert read_coco_captions(write(folder, data), folder) == [
        CaptionedImage(7, folder / "a.jpg", ["A dog.", "Un chien à gauche."]),
        CaptionedImage(3, folder / "sub/b.jpg", ["Boats."], "harbor"),
    ]


def test_instances_have_corners_and_an_area(folder):
    assert read_instances(write(folder, content()), str(folder)) == [
        Instance(3, folder / "sub/b.jpg", "boat", (10.0, 20.0, 15.0, 24.0), 20.0, False),
        Instance(7, folder / "a.jpg", "dog", (0.5, 1.0, 2.5, 4.0), 4.5, True),
    ]


def test_lvis_names_with_synonyms(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("aerosol can/spray can\nalligator\n\n crèche / manger /\n", encoding="utf-8")
    assert read_name_list(path) == [["aerosol can", "spray can"], ["alligator"], ["crèche", "manger"]]


def test_vocabulary(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("Dog/puppy\nbow_(weapon)/long bow\n\nbow (decorative ribbons)\nfish/(fish)\n")
    assert read_vocabulary(path) == {
        "dog": {"dog", "puppy"},
        "bow": {"bow", "bow weapon", "long bow", "bow decorative ribbons"},
        "fish": {"fish"},
    }
    assert list(read_vocabulary(path)) == ["dog", "bow", "fish"]
    path.write_text("\n / \n")
    with pytest.raises(EvcapError, match="holds no names"):
        read_vocabulary(path)
    path.write_text("dog\n!!/cat\n")
    with pytest.raises(EvcapError, match="'!!' holds nothing that can be said"):
        read_vocabulary(path)


def lvis(**changes) -> dict:
    """LVIS's fields that matter: a v1 image, named by its coco_url alone, and one of v0.5, with a file_name too."""
    url = "http://images.cocodataset.org/{}2017/{:012d}.jpg"
    objects = [(1, 9, 3, [0, 0, 10, 10]), (2, 9, 1, [1, 2, 3, 4]), (3, 9, 3, [5, 5, 20, 10]), (4, 4, 3, [7, 7, 5, 5])]
    return {
        "images": [
            {"id": 9, "coco_url": url.format("train", 9)},
            {"id": 4, "coco_url": url.format("val", 4), "file_name": "COCO_val2014_000000000004.jpg"},
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": c, "bbox": box, "area": 7.5} for i, image, c, box in objects
        ],
        "categories": [
            {"id": 1, "name": "bat_(animal)", "synonyms": ["bat_(animal)"]},
            {"id": 2, "name": "unseen", "synonyms": ["unseen"]},
            {"id": 3, "name": "airplane", "synonyms": ["airplane", "aeroplane"]},
        ],
    } | changes


PLACES = ["train2017/000000000009.jpg val2017/000000000004.jpg", "000000000009.jpg COCO_val2014_000000000004.jpg"]


@pytest.mark.parametrize("places", PLACES)
def test_lvis_gives_the_largest_object_of_a_class_in_each_picture(tmp_path, places):
    first, second = (tmp_path / place for place in places.split())
    for path in (first, second):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert read_lvis(write(tmp_path, lvis()), tmp_path) == [
        Instance(9, first, "bat_(animal)", (1, 2, 4, 6), 7.5, False),
        Instance(4, second, "airplane", (7, 7, 12, 12), 7.5, False),
        Instance(9, first, "airplane", (5, 5, 25, 15), 7.5, False),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an annotation file of LVIS"),
        (lvis(categories=[]), "is not an annotation file of LVIS (KeyError"),
        (lvis(images=["a"]), "is not an annotation file of LVIS"),
        (lvis(annotations=[{"id": 1, "image_id": 9, "category_id": 1}]), "(KeyError: 'bbox')"),
        (lvis(), "2 image files are missing, the first is {folder}/val2017/000000000004.jpg"),
    ],
)
def test_bad_lvis_files_get_one_clear_line(tmp_path, data, message):
    with pytest.raises(EvcapError) as caught:
        read_lvis(write(tmp_path, data), tmp_path)
    assert message.format(folder=tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(EvcapError, match="cannot read .*none"):
        read_lvis(tmp_path / "none", tmp_path)


def bad(key: str, number: int, **changes) -> dict:
    """A sound file but for one item; a value of None drops the key."""
    data = content()
    item = data[key][number]
    item.update(changes)
    for name in [name for name, value in changes.items() if value is None]:
        del item[name]
    return data


BOTH = [
    ("{", "is not JSON"),
    ("[]", "no list 'images'"),
    ({"images": []}, "no list 'annotations'"),
    (content(images={}), "no list 'images'"),
    (content(images=["a.jpg"]), "images[0] cannot be used"),
    (bad("images", 1, id=7), "1 image ids stand more than once, the first is 7"),
    (bad("images", 0, id=None), "images[0] has no 'id'"),
    (bad("images", 0, id="7"), "images[0] cannot be used: id is '7', expected int"),
    (bad("images", 1, file_name=None), "images[1] has no 'file_name'"),
    (bad("images", 1, file_name="c.jpg"), "1 image files are missing, the first is {folder}/c.jpg"),
    (bad("annotations", 0, image_id=None), "annotations[0] has no 'image_id'"),
]
CAPTIONS = [
    (bad("annotations", 1, caption=None), "annotations[1] has no 'caption'"),
    (bad("annotations", 1, caption=["A dog."]), "annotations[1] cannot be used: caption is ['A dog.'], expected str"),
    (content(annotations=[]), "2 images have no caption, the first is a.jpg"),
]
OBJECTS = [
    ({"images": [], "annotations": []}, "no list 'categories'"),
    (bad("categories", 0, name=None), "categories[0] has no 'name'"),
    (bad("annotations", 1, category_id=5), "annotations[1] cannot be used: image_id 7 or category_id 5 is not in this file"),
    (bad("annotations", 1, image_id=5), "image_id 5 or category_id 2 is not in this file"),
    (bad("annotations", 0, bbox=[1, 2, 3]), "annotations[0] cannot be used"),
    (bad("annotations", 0, bbox=[1, 2, 3, "wide"]), "annotations[0] cannot be used"),
]
CASES = [(read_coco_captions, *case) for case in BOTH + CAPTIONS] + [(read_instances, *case) for case in BOTH + OBJECTS]


@pytest.mark.parametrize(("reader", "data", "message"), CASES)
def test_bad_files_get_one_clear_line(folder, reader, data, message):
    path = write(folder, data)
    with pytest.raises(EvcapError) as caught:
        reader(path, folder)
    text = str(caught.value)
    assert text.startswith(str(path)) and message.format(folder=folder) in text and "\n" not in text


@pytest.mark.parametrize("reader", [lambda p: read_coco_captions(p, p), lambda p: read_instances(p, p), read_name_list])
def test_absent_and_binary_files(tmp_path, reader):
    with pytest.raises(EvcapError, match="cannot read .*none"):
        reader(tmp_path / "none")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00")
    with pytest.raises(EvcapError, match="photo.jpg is not"):
        reader(tmp_path / "photo.jpg")
