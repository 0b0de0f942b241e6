"""Published sets of regions: what is read of each layout, and one line for whatever is wrong with it."""

import json
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import region_files
from hypothesis import given
from hypothesis import strategies as st
from places import GOLDEN

from evcap.datasets import entities, region_sets
from evcap.datasets.benchmarks import Files
from evcap.datasets.ovad import Attribute, read_attributes
from evcap.datasets.phrases import Region
from evcap.datasets.region_sets import REGION_SETS, Published, RegionSplit, read_published
from evcap.errors import EvcapError


def read(name: str, folder: Path, split: str, images: int, phrases: int | None = None) -> Published:
    """What is read of a split that is expected to have so many images."""
    with mock.patch.dict(REGION_SETS, {name: {split: RegionSplit(images, phrases)}}):
        return read_published(name, split, Files(folder))


def test_refcocog(tmp_path):
    region_files.refcocog(tmp_path)
    found = read("refcocog", tmp_path, "val", 2, 4)
    first, second = (Path(f"COCO_train2014_{key:012}.jpg") for key in (9, 12))
    size = (100, 80)
    assert found.regions == [
        Region(9, first, (10, 20, 40.5, 60), ("the left dog", "dog near a cat"), (), size, size),
        Region(9, first, (0, 0, 20, 20), ("a cat",), (), size, size),
        Region(12, second, (5, 5, 95, 80), ("a tall man",), (), size, size),
    ]
    assert not found.left_out


def test_an_expression_that_stands_twice_counts_twice(tmp_path):
    path = region_files.refcocog(tmp_path)
    content = json.loads(path.read_text())
    content["images"][3]["caption"] = "the left dog"
    path.write_text(json.dumps(content))
    assert [r.phrases for r in read("refcocog", tmp_path, "val", 2, 4).regions][0] == ("the left dog",)


def test_the_pickle_of_refcocog_is_not_opened(tmp_path):
    (tmp_path / "refs(umd).p").write_bytes(b"cbuiltins\nexit\n(tR.")
    with pytest.raises(EvcapError, match="there is no finetune_refcocog_val.json and no finetune_refcocog_val_with_mask.json"):
        read("refcocog", tmp_path, "val", 2)


@pytest.mark.parametrize("version", ["1.0", "1.2"])
def test_visual_genome(tmp_path, version):
    region_files.visual_genome(tmp_path, version)
    found = read("visual-genome", tmp_path, "test", 3)
    size = (60, 40)
    assert found.regions == [
        Region(1, Path("1.jpg"), (10, 5, 30, 15), ("the clock is green",), (), size, size),
        Region(4, Path("4.jpg"), (0, 30, 17, 40), ("a car",), (), size, size),
    ]
    assert found.left_out == {
        "regions without a phrase": 1,
        "regions outside their image": 1,
        "images of the split that are in neither file": 1,
    }
    assert [r.phrases for r in read("visual-genome", tmp_path, "train", 1).regions] == [("a man",)]


@pytest.mark.parametrize("by_position", [False, True])
def test_ovad(tmp_path, by_position):
    path = region_files.ovad(tmp_path, by_position)
    found = read("ovad", tmp_path, "test", 2)
    size = (50, 50)
    assert found.regions == [
        Region(285, Path("000000000285.jpg"), (1, 2, 31, 42), ("stop sign",), (), size, size, (0, 1)),
        Region(139, Path("000000000139.jpg"), (0, 0, 10, 10.5), ("person",), (), size, size, (-1, 0)),
    ]
    assert found.attributes == region_files.ATTRIBUTES
    assert read_attributes(path) == [Attribute("cleanliness:clean/neat", "is", "head"), Attribute("color:red", "has", "tail")]


def test_texts_of_attributes_of_the_release():
    strings = json.loads((GOLDEN / "dynrefer_scores/meta.json").read_text())["strings"]
    texts = [Attribute(row["name"], row["is_has_att"], "").texts for row in strings["attributes"]]
    assert [len(row) for row in texts] == strings["attribute_text_counts"]
    assert [text for row in texts for text in row] == strings["attribute_texts"]


def test_flickr30k_entities(tmp_path):
    region_files.flickr30k_entities(tmp_path)
    found = read("flickr30k-entities", tmp_path, "test", 1)
    man, size = ("A man", "A worker", "another man"), (40, 30)
    boxes = {
        (0, 0, 20, 30): (man, ("people",)),
        (4, 5, 10, 16): (("a blue shirt",), ("clothing",)),
        (0, 10, 40, 12): (("a drum",), ("other", "instruments")),
        (20, 0, 40, 30): (("a drum",), ("other", "instruments")),
    }
    assert found.regions == [Region(36, Path("36.jpg"), box, *said, size, size) for box, said in boxes.items()]
    assert found.left_out == {"regions without a phrase": 1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<annotation", "36.xml is not an annotation file of Flickr30k Entities"),
        ("<annotation></annotation>", "invalid literal for int"),
        (region_files.xml("", "<width>0</width><height>9</height>"), "its size is 0 x 9"),
        (region_files.xml("<object><name>1</name><bndbox><xmin>1</xmin></bndbox></object>"), "invalid literal"),
        ('<!DOCTYPE a [<!ENTITY b "x">]>' + region_files.xml("<object><name>&b;</name></object>"), "it has a document type"),
        (region_files.xml("<object><name>&file;</name></object>"), "undefined entity"),
        (region_files.xml(region_files.thing([1], ("1", "1", "9" * 5000, "9"))), "not an annotation file"),
        ("<a>" * 100_000, "not an annotation file"),
        ("<a>" * 70_000 + "</a>" * 70_000, "not an annotation file"),
    ],
)
def test_xml_that_is_refused(tmp_path, text, line):
    region_files.flickr30k_entities(tmp_path)
    for encoding in ("utf-8", "utf-16"):  # a document type is seen in any encoding
        (tmp_path / "Annotations/36.xml").write_text(text, encoding=encoding)
        with pytest.raises(EvcapError) as caught:
            read("flickr30k-entities", tmp_path, "test", 1)
        assert line in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_sizes_are_bounded(tmp_path, monkeypatch):
    region_files.flickr30k_entities(tmp_path)
    monkeypatch.setattr(entities, "LARGEST", 100)
    with pytest.raises(EvcapError, match="bytes are more than the 100"):
        read("flickr30k-entities", tmp_path, "test", 1)


phrases = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.lists(st.sampled_from(["people", "other", "bodyparts"]), min_size=1, max_size=2),
        st.text(st.characters(codec="utf-8", exclude_characters="[]", exclude_categories=["C", "Z"]), min_size=1, max_size=6),
    ),
    max_size=6,
)


@given(st.lists(phrases, max_size=3))
def test_any_phrases_come_through(lines):
    text = "\n".join(
        " and ".join(f"[/EN#{entity}/{'/'.join(types)} {words}]" for entity, types, words in line) + " ." for line in lines
    )
    expected: dict = {}
    for entity, types, words in (row for line in lines for row in line):
        if entity:
            said, kinds = expected.setdefault(str(entity), ([], []))
            said.append(words)
            kinds.extend(types)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "1.txt")
        path.write_text(text, encoding="utf-8")
        assert entities.read_sentences(path) == expected


@pytest.mark.parametrize("text", ["[/EN#1/people A man in", "[/EN#1/people ]", "[/EN#x/people A man]", "[/EN#1 A man]"])
def test_phrases_that_are_marked_wrongly(tmp_path, text):
    (tmp_path / "1.txt").write_text(text)
    with pytest.raises(EvcapError, match="is not a text of Flickr30k Entities: 1 phrases"):
        entities.read_sentences(tmp_path / "1.txt")


def change(path: Path, place: tuple, value) -> None:
    content = json.loads(path.read_text())
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "make", "split", "place", "value", "line"),
    [
        ("refcocog", region_files.refcocog, "val", ("images", 0, "caption"), 4, "images[0] cannot be used: caption is 4"),
        (
            "refcocog",
            region_files.refcocog,
            "val",
            ("annotations", 1, "image_id"),
            5,
            "annotations[1] cannot be used: image_id 5",
        ),
        ("refcocog", region_files.refcocog, "val", ("annotations", 1, "bbox"), [0, 0, 1], "annotations[1] cannot be used"),
        ("refcocog", region_files.refcocog, "val", ("images", 0, "width"), 0, "width and height are (0, 80)"),
        ("refcocog", region_files.refcocog, "val", ("annotations",), [], "val has 0 phrases, expected 4: is the file whole?"),
        ("visual-genome", region_files.visual_genome, "test", (0, "regions", 0, "x"), "a", "items[0] cannot be used"),
        ("visual-genome", region_files.visual_genome, "test", (0, "regions", 0, "phrase"), None, "phrase is None"),
        ("visual-genome", region_files.visual_genome, "test", (0, "regions"), {}, "regions is {}, expected list"),
        ("ovad", region_files.ovad, "test", ("annotations", 0, "att_vec"), [1], "its attributes are [1], expected 2"),
        ("ovad", region_files.ovad, "test", ("annotations", 0, "att_vec"), [1, 2], "another number than 1, 0 and -1"),
        ("ovad", region_files.ovad, "test", ("annotations", 0, "att_vec"), [True, 0], "expected 2 whole numbers"),
        ("ovad", region_files.ovad, "test", ("annotations", 0, "category_id"), 44, "category_id 44 is not in this file"),
        ("ovad", region_files.ovad, "test", ("attributes",), {}, "it has no list 'attributes'"),
        ("ovad", region_files.ovad, "test", ("images", 0, "file_name"), 3, "file_name is 3"),
        ("ovad", region_files.ovad, "test", ("annotations",), [], "test has no region"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, name, make, split, place, value, line):
    path = make(tmp_path)
    change(path, place, value)
    with pytest.raises(EvcapError) as caught:
        read(name, tmp_path, split, 3 if name == "visual-genome" else 2, 4 if name == "refcocog" else None)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_splits_of_visual_genome(tmp_path):
    region_files.visual_genome(tmp_path)
    with pytest.raises(EvcapError, match="test has 3 images, expected 5,000"):
        read_published("visual-genome", "test", Files(tmp_path))
    for content in ({"train": []}, {"test": ["1"]}, [1]):
        (tmp_path / "densecap_splits.json").write_text(json.dumps(content))
        with pytest.raises(EvcapError, match="has no list of image ids 'test'"):
            read("visual-genome", tmp_path, "test", 3)
    (tmp_path / "densecap_splits.json").write_text('{"test": [1]}')
    (tmp_path / "image_data.json").write_text("{}")
    with pytest.raises(EvcapError, match="is not a file of Visual Genome: expected a list"):
        read("visual-genome", tmp_path, "test", 1)


rubbish = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "regions", "images", "test"]), inner),
    max_leaves=10,
)
FILES = {
    "refcocog": ["finetune_refcocog_test.json"],
    "visual-genome": ["region_descriptions.json", "image_data.json", "densecap_splits.json"],
    "ovad": ["ovad2000.json"],
    "flickr30k-entities": ["test.txt", "1.xml", "1.txt"],
}


@pytest.mark.parametrize("name", region_sets.REGION_SETS)
@given(st.data())
def test_rubbish_gets_one_line(name, data):
    with tempfile.TemporaryDirectory() as folder:
        for file in FILES[name]:
            content = data.draw(st.binary(max_size=40) | rubbish.map(lambda value: json.dumps(value).encode()))
            Path(folder, file).write_bytes(content)
        with pytest.raises(EvcapError) as caught:
            read(name, Path(folder), "test", 7)
    assert "\n" not in str(caught.value)
