"""Readers of benchmarks on any captions and on any rubbish; their files at full size are in test_convert.py."""

import csv
import json
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evcap.datasets.benchmarks import BENCHMARKS, Files, Row, Split, read_rows
from evcap.errors import EvcapError

FILES = {
    ("coco-karpathy", "val"): "dataset_coco.json",
    ("flickr30k", "test"): "flickr_annotations_30k.csv",
    ("nocaps", "val"): "nocaps_val_4500_captions.json",
    ("nocaps", "test"): "nocaps_test_image_info.json",
    ("whoops", "test"): "whoops_dataset.csv",
}
HEADER = "split,raw,crowd_captions,filename,img_id,image_id"
captions = st.lists(st.lists(st.text(), min_size=1, max_size=4), min_size=1, max_size=5)
keys = st.sampled_from(
    ["images", "annotations", "id", "split", "sentences", "raw", "cocoid", "filename", "image_id", "caption"]
)
rubbish = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("val"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def read(name: str, split: str, content: bytes, pictures: int) -> list[Row]:
    """What `read_rows` makes of a file of the set, expected to have so many images with a caption each."""
    expected = Split(pictures, int((name, split) != ("nocaps", "test")))
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(BENCHMARKS, {name: {split: expected}}):
        Path(folder, FILES[name, split]).write_bytes(content)
        return read_rows(name, split, Files(Path(folder)))


def table(rows: list[dict]) -> bytes:
    with tempfile.NamedTemporaryFile("w+", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        return Path(file.name).read_bytes()


@given(captions)
def test_any_captions_come_through(texts):
    sentences = [[{"raw": text} for text in row] for row in texts]
    numbered = list(enumerate(sentences))
    coco = [{"cocoid": n, "filename": f"{n}.jpg", "split": "val", "sentences": row} for n, row in numbered]
    coco.append({"split": "train"})
    nocaps = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "domain": "in-domain"} for n, _ in numbered],
        "annotations": [{"image_id": n, "caption": text} for n, row in enumerate(texts) for text in row],
    }
    lists = [json.dumps(row, ensure_ascii=True) for row in texts]
    flickr = [{"raw": row, "split": "test", "filename": f"{n}.jpg", "img_id": n} for n, row in enumerate(lists)]
    whoops = [{"image_id": str(n), "crowd_captions": row} for n, row in enumerate(lists)]
    plain = [Row(n, f"{n}.jpg", row) for n, row in enumerate(texts)]
    assert read("coco-karpathy", "val", json.dumps({"images": coco}).encode(), len(texts)) == plain
    assert read("flickr30k", "test", table(flickr), len(texts)) == plain
    assert read("whoops", "test", table(whoops), len(texts)) == [Row(n, f"{n}.png", row) for n, row in enumerate(texts)]
    found = read("nocaps", "val", json.dumps(nocaps).encode(), len(texts))
    assert found == [Row(n, f"{n}.jpg", row, {"domain": "in-domain"}) for n, row in enumerate(texts)]


lists = st.lists(rubbish, max_size=3)
coco_like = st.fixed_dictionaries({"images": lists, "annotations": lists}) | rubbish
cells = st.lists(st.lists(st.text(max_size=6) | st.sampled_from(["test", "[]", '["a"]', "7"]), max_size=7), max_size=3)
table_like = cells.map(lambda rows: "\n".join([HEADER, *map(",".join, rows)]).encode())


@pytest.mark.parametrize(("name", "split"), FILES)
@given(content=st.binary(max_size=60) | coco_like.map(lambda data: json.dumps(data).encode()) | table_like)
def test_rubbish_gets_one_line(name, split, content):
    with pytest.raises(EvcapError) as caught:
        read(name, split, content, 7)
    assert "\n" not in str(caught.value)
