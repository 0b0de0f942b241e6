"""Regions and their phrases, of Entities' layout and of COCO's boxes, on good and bad files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evcap.datasets.phrases import Region, read_class_boxes, read_phrases, read_referring, within
from evcap.errors import EvcapError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.jpg").touch()
    return tmp_path


def write(folder, annotations, **image):
    image = {"id": 1, "file_name": "a.jpg", "width": 224, "height": 224} | image
    categories = [{"id": 5, "name": "dog"}]
    path = folder / "set.json"
    path.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": categories}))
    return path


def phrase(bbox=(10, 20, 30, 40), phrases=("a dog",), **more):
    return {"image_id": 1, "bbox": list(bbox), "phrases": list(phrases), "types": ["animals"]} | more


def test_a_squashed_photo(folder):
    path = write(folder, [phrase(phrases=[" a dog ", "a dog", "A lone dog"])], orig_width=448, orig_height=112)
    (region,) = read_phrases(path, folder)
    box = (10.0, 20.0, 40.0, 60.0)
    assert region == Region(1, folder / "a.jpg", box, ("a dog", "A lone dog"), ("animals",), (224, 224), (448, 112))
    assert region.real_box == (20, 10, 80, 30)
    image = Image.new("RGB", (224, 224))
    image.paste((255, 0, 0), (10, 20, 40, 60))
    real = region.unsquashed(image)
    assert real.size == (448, 112)
    inner, outer = real.crop((23, 13, 77, 27)), real.crop((85, 35, 440, 110))
    assert inner.getextrema() == ((255, 255), (0, 0), (0, 0)) and outer.getextrema() == ((0, 0), (0, 0), (0, 0))


def test_a_photo_that_is_not_squashed(folder):
    (region,) = read_phrases(write(folder, [phrase()]), folder)
    assert region.real_box == region.box
    image = Image.new("RGB", (224, 224))
    assert region.unsquashed(image) is image


def test_class_boxes_without_crowds(folder):
    dog = {"image_id": 1, "category_id": 5, "bbox": [0, 0, 300, 20]}
    (region,) = read_class_boxes(write(folder, [dog, dog | {"iscrowd": 1}, dog | {"bbox": [230, 0, 5, 5]}]), folder)
    assert (region.phrases, region.box, region.types) == (("dog",), (0, 0, 224, 20), ())


def test_class_boxes_of_a_squashed_photo(folder):
    dog = {"image_id": 1, "category_id": 5, "bbox": [10, 20, 30, 40]}
    (region,) = read_class_boxes(write(folder, [dog], orig_width=448, orig_height=112), folder)
    assert region.real_size == (448, 112) and region.real_box == (20, 10, 80, 30)
    (region,) = read_class_boxes(write(folder, [dog]), folder)
    assert region.real_size == region.size == (224, 224) and region.real_box == region.box


def test_attributes_of_regions(folder):
    path = write(folder, [phrase(attributes=[1, -1]), phrase()])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attributes": [{"name": "color:red"}, {"name": "color:blue"}]}))
    assert [region.attributes for region in read_phrases(path, folder)] == [(1, -1), ()]


def expression(text: str, bbox=(10, 20, 30, 40)) -> dict:
    return {"image_id": 1, "bbox": bbox and list(bbox), "expression": text, "no_target": not bbox, "types": ["spatial"]}


def test_referring_expressions(folder):
    """A box has all expressions that refer to it; what refers to nothing is left out."""
    rows = [expression("the dog"), expression("a cat", (0, 0, 500, 9)), expression("no dog", None), expression(" left dog ")]
    path = write(folder, [*rows, expression("the dog"), expression(" "), expression("away", (300, 0, 9, 9))], orig_width=448)
    first, second = read_referring(path, folder)
    assert first == Region(1, folder / "a.jpg", (10, 20, 40, 60), ("the dog", "left dog"), (), (224, 224), (448, 224))
    assert (second.phrases, second.box) == (("a cat",), (0, 0, 224, 9))
    for row, line in ((expression("x") | {"image_id": 9}, "image_id 9 is not in this file"), (phrase(), "has no 'expression'")):
        with pytest.raises(EvcapError, match=line):
            read_referring(write(folder, [row]), folder)


side = st.floats(-500, 500)


@given(box=st.tuples(side, side, side, side), size=st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_what_is_within_is_the_overlap(box, size):
    x1, y1, x2, y2 = box
    found = within((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), size)
    columns = min(max(x1, x2), size[0]) - max(min(x1, x2), 0)
    rows = min(max(y1, y2), size[1]) - max(min(y1, y2), 0)
    assert (found is None) == (min(columns, rows) < 1)
    if found:
        assert 0 <= found[0] < found[2] <= size[0] and 0 <= found[1] < found[3] <= size[1]
        assert (found[2] - found[0], found[3] - found[1]) == pytest.approx((columns, rows))


@pytest.mark.parametrize(
    ("annotations", "line"),
    [
        ([phrase(image_id=2)], r"annotations\[0\] cannot be used: image_id 2 is not in this file"),
        ([phrase(phrases=[" "])], "its phrases are empty"),
        ([phrase(), {"image_id": 1, "bbox": [0, 0, 9, 9]}], r"annotations\[1\] has no 'phrases'"),
        ([phrase(bbox=[0, 0, float("nan"), 4])], "is not finite"),
        ([phrase(attributes=[1])], r"its attributes are \[1\], expected 0 whole numbers"),
        ([phrase(attributes="1")], "its attributes are '1'"),
        ([phrase(bbox=[500, 0, 4, 4])], "1 annotations, but none with a box inside its image"),
    ],
)
def test_bad_files(folder, annotations, line):
    with pytest.raises(EvcapError, match=line):
        read_phrases(write(folder, annotations), folder)


@pytest.mark.parametrize("image", [{"width": 0}, {"height": "9"}, {"orig_width": -4}])
def test_bad_sizes(folder, image):
    with pytest.raises(EvcapError, match=r"images\[0\] cannot be used"):
        read_phrases(write(folder, [phrase()], **image), folder)
