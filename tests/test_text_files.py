"""Text, JSON and CSV files in the encodings and with the separators that other programs write, against Python's own."""

import codecs
import json
import os

import pytest

from evcap.config import load_preset, preset_path
from evcap.datasets.annotations import read_lists
from evcap.datasets.coco import read_coco_captions, read_instances, read_lvis, read_name_list, read_vocabulary
from evcap.datasets.named_images import read_named_csv
from evcap.errors import EvcapError
from evcap.evaluation.mme_realworld import _rows
from evcap.text_files import brief, one_line, read_json, read_table, read_text

# as they are written: Python's own encoder, with the mark that the name of the encoding does not imply
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32": b"",
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def written(path, text: str, encoding: str):
    path.write_bytes(ENCODINGS[encoding] + text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_reader_knows_the_marks_of_encodings(tmp_path, encoding):
    names = written(tmp_path / "n.txt", "dog\r\nrød panda/lesser panda\r\n", encoding)
    assert read_name_list(names) == [["dog"], ["rød panda", "lesser panda"]]
    assert list(read_vocabulary(names)) == ["dog", "rød panda"]
    (tmp_path / "a.png").touch()
    table = written(tmp_path / "t.csv", "image,name\r\na.png,Crèche\r\n", encoding)
    assert [item.name for item in read_named_csv(table, "t")] == ["crèche"]
    lists = written(tmp_path / "c.json", json.dumps({"images": [{"é": 1}]}, ensure_ascii=False), encoding)
    assert read_lists(lists, ("images",)) == {"images": [{"é": 1}]}
    lines = written(tmp_path / "q.jsonl", '{"a": 1}\n{"a": 2}\n', encoding)
    assert [row for row, _ in _rows(lines)] == [{"a": 1}, {"a": 2}]
    shipped = (
        preset_path("embedded").read_text().replace("assets: ../assets", f"assets: {preset_path('embedded').parent}/../assets")
    )
    preset = written(tmp_path / "p.yaml", shipped, encoding)
    assert load_preset(preset).vision == load_preset("embedded").vision


@pytest.mark.parametrize("separator", [",", ";", "\t", ", ", "; "])
def test_columns_are_separated_as_the_header_says(tmp_path, separator):
    (tmp_path / "a.png").touch()
    rows = [["image", "name", "x1", "y1", "x2", "y2"], ["a.png", '"Dog, wild; red"', "1", "2", "30", "40.5"]]
    (tmp_path / "t.csv").write_text("".join(separator.join(row) + "\n" for row in rows))
    (item,) = read_named_csv(tmp_path / "t.csv", "t")
    assert item.name == "dog wild; red".replace(";", "") and item.box == (1, 2, 30, 40.5)


def test_a_column_of_another_name_decides_nothing(tmp_path):
    (tmp_path / "t.csv").write_text("a;b,image\tname\nx\ty\n")
    with pytest.raises(EvcapError, match="t.csv: say it$"):
        list(read_table(tmp_path / "t.csv", {"image", "name"}, "say it"))


READERS = {
    "names": read_name_list,
    "table": lambda path: read_named_csv(path, "t"),
    "captions": lambda path: read_coco_captions(path, path.parent),
    "lvis": lambda path: read_lvis(path, path.parent),
    "questions": _rows,
    "preset": load_preset,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_told_at_once(tmp_path, reader, kind):
    path = tmp_path / "x.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(EvcapError, match=r"cannot read .*x\.yaml: (not a regular file|Is a directory)"):
        READERS[reader](path)


def test_a_file_that_is_too_long(tmp_path):
    (tmp_path / "x").write_bytes(bytes(11))
    with pytest.raises(EvcapError, match="11 bytes are more than the 10"):
        read_text(tmp_path / "x", 10)
    with pytest.raises(EvcapError, match="11 bytes are more than the 10"):
        read_json(tmp_path / "x", 10)


@pytest.mark.parametrize("text", ["[" * 10**5, "9" * 10**5, '{"a": ' * 10**5, "-" + "1" * 5000, "[1", "\ud800"])
def test_json_of_any_depth_and_length_is_one_short_line(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode(errors="replace"))
    with pytest.raises(EvcapError, match=r"x\.json is not JSON") as caught:
        read_json(tmp_path / "x.json")
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize("bbox", ["[1,2,3,1e999]", "[1,2,3,NaN]", f"[1,2,3,{'9' * 400}]", '[1,2,3,"Infinity"]'])
def test_boxes_are_finite(tmp_path, bbox):
    (tmp_path / "a.jpg").touch()
    rows = f'"annotations": [{{"image_id": 1, "category_id": 1, "bbox": {bbox}}}], "categories": [{{"id": 1, "name": "dog"}}]'
    (tmp_path / "x.json").write_text(f'{{"images": [{{"id": 1, "file_name": "a.jpg"}}], {rows}}}')
    with pytest.raises(EvcapError, match=r"annotations\[0\] cannot be used") as caught:
        read_instances(tmp_path / "x.json", tmp_path)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300


def nest(depth: int):
    inner = ["x"] * 10
    for _ in range(depth):
        inner = [inner] * 10
    return inner


LONG = {
    "text": "x" * 10**6,
    "integer": 10**5000,
    "nest": nest(9),
    "mapping": {str(i): nest(9) for i in range(100)},
    "deep": [[[[[[[[1]]]]]]]],
    "set": set(range(1000)),
    "bytes": b"x" * 10**6,
}


@pytest.mark.parametrize("kind", LONG)
def test_values_are_printed_in_short(kind):
    assert len(brief(LONG[kind])) < 500


def test_plain_values_are_printed_as_they_are():
    for value in (3, "dog", 0.5, None, [1, 2], {"a": True}, True):
        assert brief(value) == repr(value)
    assert one_line("a\n  b\tc") == "a b c" and len(one_line("x" * 10**7)) == 200
