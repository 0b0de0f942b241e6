"""Files of boxes as users write them: both formats, whatever is wrong with single boxes, whatever is wrong with a file."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evcap.datasets import box_files
from evcap.datasets.box_files import AskedBox, boxes_by_file, read_boxes
from evcap.errors import EvcapError


def coco(
    folder: Path, annotations: list, images=({"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "sub/b.png"})
) -> Path:
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": list(images), "annotations": annotations}))
    return path


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "boxes.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_coco(tmp_path):
    rows = [
        {"id": 5, "image_id": 8, "bbox": [10, 20, 30.5, 40], "category_id": 1},
        {"id": "x", "image_id": 7, "bbox": [-5, 0, 10, 1e6]},  # what the image does not hold is told with the image
        {"image_id": 8, "bbox": [0, 0, 1, 1]},
    ]
    found = read_boxes(coco(tmp_path, rows))
    assert found == [
        AskedBox(5, "sub/b.png", (10, 20, 40.5, 60)),
        AskedBox("x", "a.jpg", (-5, 0, 5, 1e6)),
        AskedBox(None, "sub/b.png", (0, 0, 1, 1)),
    ]
    assert boxes_by_file(found) == {"sub/b.png": [found[0], found[2]], "a.jpg": [found[1]]}


def test_each_bad_box_of_coco_is_told_and_keeps_its_place(tmp_path):
    good = {"id": 1, "image_id": 7, "bbox": [0, 0, 4, 4]}
    bad = {
        "image_id 9 is not among its images": {"id": 2, "image_id": 9, "bbox": [0, 0, 4, 4]},
        "image_id True is not among": {"id": 3, "image_id": True, "bbox": [0, 0, 4, 4]},
        "image_id [7] is not among": {"id": 33, "image_id": [7], "bbox": [0, 0, 4, 4]},
        "its width and its height must be above 0": {"id": 4, "image_id": 7, "bbox": [9, 9, -4, 4]},
        "must be above 0": {"id": 5, "image_id": 7, "bbox": [0, 0, 0, 4]},
        "is not finite": {"id": 6, "image_id": 7, "bbox": [math.nan, 0, 4, 4]},
        "box (inf,": {"id": 66, "image_id": 7, "bbox": [math.inf, 0, 4, 4]},
        "expected four numbers": {"id": 67, "image_id": 7, "bbox": [0, 0, 4]},
        "bbox is ['0', 0, 4, 4], expected four": {"id": 8, "image_id": 7, "bbox": ["0", 0, 4, 4]},
        "bbox is {'x': 1}": {"id": 9, "image_id": 7, "bbox": {"x": 1}},
        "annotations[11] has no 'bbox'": {"id": 10, "image_id": 7},
        "annotations[12] has no 'image_id'": {"id": 11, "bbox": [0, 0, 4, 4]},
        "an earlier box has the same id": {"id": 1, "image_id": 7, "bbox": [0, 0, 5, 5]},
        "its id is 1.5": {"id": 1.5, "image_id": 7, "bbox": [0, 0, 4, 4]},
        "it is 'box', expected an object": "box",
        "is empty or its corners are swapped": {"id": 12, "image_id": 7, "bbox": [1e300, 0, 1, 1]},
        "too large to convert": {"id": 13, "image_id": 7, "bbox": [10**400, 0, 1, 1]},
    }
    last = {"id": 99, "image_id": 8, "bbox": [0, 0, 4, 4]}
    found = read_boxes(coco(tmp_path, [good, *bad.values(), last]))
    assert found[0].error is found[-1].error is None and len(found) == len(bad) + 2
    for row, (line, asked) in zip(found[1:-1], bad.items(), strict=True):
        assert line in row.error and "\n" not in row.error and row.error.startswith("boxes.json: annotations[")
        assert row.box is None
        if isinstance(asked, dict):
            assert row.id == (asked["id"] if isinstance(asked["id"], int) else None)
            assert row.file == ("a.jpg" if asked.get("image_id") == 7 and row.id not in (1, None) else row.file)
    assert list(boxes_by_file(found)) == ["a.jpg", "sub/b.png"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file,x1,y1,x2,y2\na.jpg,1,2,3,4\nb c.jpg,0,0,9.5,1e2\n", "utf-8"),
        ("file,x1,y1,x2,y2\r\na.jpg,1,2,3,4\r\n\r\nb c.jpg,0,0,9.5,1e2", "utf-8-sig"),
        (" file , x1 , y1 , x2 , y2 \n a.jpg , 1 , 2 , 3 , 4 \n b c.jpg , 0 , 0 , 9.5 , 1e2 \n", "utf-8"),
        ("y2;x2;y1;x1;file\n4;3;2;1;a.jpg\n1e2;9.5;0;0;b c.jpg\n", "utf-16"),
        ("file_name\tnote\tx1\ty1\tx2\ty2\na.jpg\t\t1\t2\t3\t4\nb c.jpg\tx\t0\t0\t9.5\t1e2\n", "utf-8"),
    ],
)
def test_tables(tmp_path, text, encoding):
    first, second = read_boxes(table(tmp_path, text, encoding))
    assert first == AskedBox(1, "a.jpg", (1, 2, 3, 4)) and second == AskedBox(2, "b c.jpg", (0, 0, 9.5, 100))


def test_ids_of_a_table(tmp_path):
    found = read_boxes(table(tmp_path, "id,file,x1,y1,x2,y2\ncat,a.jpg,1,2,3,4\n,a.jpg,1,2,3,4\n"))
    assert [row.id for row in found] == ["cat", 2]


def test_each_bad_row_of_a_table_is_told_and_keeps_its_place(tmp_path):
    bad = {
        "a.jpg,5,2,3,4": "is empty or its corners are swapped: x1 < x2 and y1 < y2",
        "a.jpg,1,2,3,2": "is empty or its corners",
        "a.jpg,nan,2,3,4": "is not finite",
        "a.jpg,1,2,inf,4": "is not finite",
        "a.jpg,1,two,3,4": "y1 is 'two', expected a number",
        "a.jpg,1,,3,4": "y1 is '', expected a number",
        "a.jpg,1,2,3": "it has more or fewer columns than the first line",
        "a.jpg,1,2,3,4,5": "it has more or fewer columns",
        ",1,2,3,4": "it names no file",
        '"a.jpg\n",1,2,3,-4': "line 13 cannot be used: box",
    }
    text = "\n".join(["file,x1,y1,x2,y2", "good.jpg,1,2,3,4", *bad, "good.jpg,1,2,3,5"])
    found = read_boxes(table(tmp_path, text))
    assert [row.id for row in found] == list(range(1, len(bad) + 3))
    assert found[0].box == (1, 2, 3, 4) and found[-1].box == (1, 2, 3, 5)
    for row, line in zip(found[1:-1], bad.values(), strict=True):
        assert line in row.error and "\n" not in row.error and row.error.startswith("boxes.csv, line ")
    assert [row.file for row in found[1:-1]] == ["a.jpg"] * 8 + [None, "a.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("b.json", b"{", "is not JSON"),
        ("b.json", b"[]", "it has no list 'images'"),
        ("b.json", b'{"images": []}', "it has no list 'annotations'"),
        ("b.json", b'{"images": [], "annotations": []}', "holds no boxes"),
        ("b.JSON", b'{"images": [{"id": 1}], "annotations": []}', "images[0] has no 'file_name'"),
        ("b.json", b'{"images": [{"id": 1, "file_name": 4}], "annotations": []}', "its file_name is 4"),
        ("b.json", b'{"images": [{"id": [], "file_name": "a"}], "annotations": []}', "its id is []"),
        ("b.json", b'{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}', "1 image ids"),
        ("b.csv", b"", "its first line must name the columns file,x1,y1,x2,y2"),
        ("b.csv", b"a.jpg,1,2,3,4\n", "its first line must name the columns"),
        ("b.txt", b'{"images": []}', "COCO's format is read from a file that ends in .json"),
        ("b.csv", b"file,x1,y1,x2\na,1,2,3\n", "its first line must name"),
        ("b.csv", b"file,x1,y1,x2,y2\n", "holds no boxes"),
        ("b.csv", b"\xff\xfe\x00", "is not a CSV file in UTF-8"),
    ],
)
def test_files_of_another_structure(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EvcapError) as caught:
        read_boxes(tmp_path / name)
    assert line in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)


def test_absent_and_too_large(tmp_path, monkeypatch):
    with pytest.raises(EvcapError, match="cannot read"):
        read_boxes(tmp_path / "none.json")
    monkeypatch.setattr(box_files, "LARGEST_TEXT", 10)
    with pytest.raises(EvcapError, match="bytes are more than the 10"):
        read_boxes(coco(tmp_path, []))


side = st.floats(-1e4, 1e4, allow_nan=False)
spans = st.tuples(side, side, st.floats(1e-3, 1e4), st.floats(1e-3, 1e4))
names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=8).filter(
    lambda name: name == name.strip() and name
)


@given(st.lists(st.tuples(names, spans), min_size=1, max_size=6))
def test_any_boxes_come_through_both_formats(rows):
    with tempfile.TemporaryDirectory() as folder:
        files = list(dict.fromkeys(name for name, _ in rows))
        images = [{"id": number, "file_name": name} for number, name in enumerate(files)]
        annotations = [{"id": n, "image_id": files.index(name), "bbox": list(box)} for n, (name, box) in enumerate(rows, 1)]
        found = read_boxes(coco(Path(folder), annotations, images))
        expected = [(x, y, x + w, y + h) for _, (x, y, w, h) in rows]
        assert [row.box for row in found] == expected and [row.file for row in found] == [name for name, _ in rows]
        quoted = ['"' + name.replace('"', '""') + '"' for name, _ in rows]
        lines = [f"{name},{','.join(map(repr, box))}" for name, box in zip(quoted, expected, strict=True)]
        assert read_boxes(table(Path(folder), "\n".join(["file,x1,y1,x2,y2", *lines]))) == found


rubbish = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "image_id", "bbox"]), inner),
    max_leaves=10,
)


@given(
    st.lists(rubbish | st.fixed_dictionaries({"id": rubbish, "image_id": st.just(7), "bbox": rubbish}), min_size=1, max_size=4)
)
def test_rubbish_becomes_records(annotations):
    with tempfile.TemporaryDirectory() as folder:
        found = read_boxes(coco(Path(folder), annotations))
    assert len(found) == len(annotations)
    for row in found:
        assert (row.box is None) != (row.error is None) and "\n" not in (row.error or "")
        assert row.box is None or (row.file and row.box[0] < row.box[2] and row.box[1] < row.box[3])


@given(st.binary(max_size=80) | st.text(max_size=60).map(lambda text: b"file,x1,y1,x2,y2\n" + text.encode(errors="replace")))
def test_a_rubbish_table_gets_one_line_or_records(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "b.csv")
        path.write_bytes(content)
        try:
            found = read_boxes(path)
        except EvcapError as error:
            assert "\n" not in str(error)
        else:
            assert all((row.box is None) != (row.error is None) for row in found)
