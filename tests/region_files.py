"""Small sets of regions in the layouts that their authors publish."""

import json
from pathlib import Path

from PIL import Image


def photo(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "green").save(path)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def refcocog(folder: Path, split: str = "val") -> Path:
    """Two photos; three objects, the first with two expressions, which stand apart as MDETR has them."""
    rows = [
        (9, 31, [10, 20, 30.5, 40], "the left dog"),
        (9, 32, [0, 0, 20, 20], "a cat"),
        (12, 33, [5, 5, 90, 300], "a tall man"),
        (9, 31, [10, 20, 30.5, 40], "dog near a cat"),
    ]
    images, annotations = [], []
    for number, (image, annotation, bbox, text) in enumerate(rows, start=100):
        file, size = f"COCO_train2014_{image:012}.jpg", {"width": 100, "height": 80}
        common = {"original_id": image, "dataset_name": "refcocog", "tokens_negative": [[0, 3]]}
        images.append({"file_name": file, "id": number, "caption": text} | size | common)
        more = {"area": 9.5, "iscrowd": 0, "category_id": 18, "tokens_positive": [[0, 3]], "original_id": annotation}
        annotations.append({"id": number + 7, "image_id": number, "bbox": bbox} | more)
    path = folder / "mdetr_annotations" / f"finetune_refcocog_{split}.json"
    write_json(path, {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": []})
    for image in (9, 12):
        photo(folder / "train2014" / f"COCO_train2014_{image:012}.jpg", (100, 80))
    return path


def visual_genome(folder: Path, version: str = "1.2") -> Path:
    """Images 1, 2 and 4, of which 2 is in another split; 77 is in the split alone, as where version 1.2 lacks it."""
    old = version == "1.0"
    sizes = [{"id" if old else "image_id": key, "width": 60, "height": 40, "coco_id": None, "url": ""} for key in (1, 2, 4)]
    write_json(folder / "image_data.json", sizes)

    def region(key: int, image: int, phrase: str, x: int, y: int, width: int, height: int) -> dict:
        names = {"id": key, "image": image} if old else {"region_id": key, "image_id": image}
        return names | {"phrase": phrase, "x": x, "y": y, "width": width, "height": height}

    path = folder / "region_descriptions.json"
    one = [region(1, 1, "the clock is green ", 10, 5, 20, 10), region(2, 1, " ", 0, 0, 9, 9), region(3, 1, "off", 60, 0, 9, 9)]
    two, four = [region(4, 2, "a man", 0, 0, 9, 9)], [region(5, 4, "a car", -3, 30, 20, 30)]
    write_json(path, [{"id": 1, "regions": one}, {"id": 2, "regions": two}, {"id": 4, "regions": four}])
    write_json(folder / "densecap_splits.json", {"train": [2], "val": [], "test": [4, 1, 77]})
    for key, part in ((1, "VG_100K_2"), (2, "VG_100K"), (4, "VG_100K")):
        photo(folder / part / f"{key}.jpg", (60, 40))
    return path


ATTRIBUTES = [
    {"id": 0, "name": "cleanliness:clean/neat", "type": "cleanliness", "is_has_att": "is", "freq_set": "head"},
    {"id": 1, "name": "color:red", "type": "color", "is_has_att": "has", "freq_set": "tail"},
]


def ovad(folder: Path, by_position: bool = False) -> Path:
    """Two photos with a person (COCO's class 1) and a stop sign (13, the 2nd of the list here)."""
    images = [{"id": key, "width": 50, "height": 50, "file_name": f"{key:012}.jpg", "license": 1} for key in (139, 285)]
    categories = [{"id": 1, "name": "person", "ov_set": "base"}, {"id": 13, "name": "stop sign", "ov_set": "novel"}]
    classes = (0, 1) if by_position else (1, 13)
    annotations = [
        {"id": 1, "image_id": 285, "bbox": [1, 2, 30, 40], "category_id": classes[1], "att_vec": [0, 1], "iscrowd": 0},
        {"id": 2, "image_id": 139, "bbox": [0, 0, 10, 10.5], "category_id": classes[0], "att_vec": [-1, 0], "iscrowd": 0},
    ]
    content = {"images": images, "categories": categories, "attributes": ATTRIBUTES, "annotations": annotations}
    write_json(folder / "ovad2000.json", {"info": {}, "licenses": []} | content)
    for image in images:
        photo(folder / "val2017" / image["file_name"], (50, 50))
    return folder / "ovad2000.json"


SENTENCES = """[/EN#1/people A man] in [/EN#2/clothing a blue shirt] is standing on [/EN#3/scene the street] .
[/EN#1/people A worker] holds [/EN#4/other/instruments a drum] while [/EN#0/notvisual it] rains .
[/EN#1/people A man] and [/EN#5/people another man] stand .
"""


def xml(objects: str, size: str = "<width>40</width><height>30</height>") -> str:
    return f"<annotation><filename>36.jpg</filename><size>{size}<depth>3</depth></size>{objects}</annotation>"


def thing(names, box) -> str:
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return "<object>" + "".join(f"<name>{name}</name>" for name in names) + f"<bndbox>{corners}</bndbox></object>"


# of the two men one box; the shirt; the drum twice; a scene without a box; an entity that no caption names
OBJECTS = "".join(
    [
        thing([1, 5], (1, 1, 20, 30)),
        thing([2], (5, 6, 10, 16)),
        thing([4], (1, 11, 40, 12)),
        thing([4], (21, 1, 40, 30)),
        "<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>",
        thing([99], (1, 1, 9, 9)),
    ]
)


def flickr30k_entities(folder: Path, split: str = "test") -> Path:
    (folder / "Annotations").mkdir(parents=True)
    (folder / "Sentences").mkdir()
    (folder / f"{split}.txt").write_text("36\n")
    (folder / "Annotations/36.xml").write_text(xml(OBJECTS))
    (folder / "Sentences/36.txt").write_text(SENTENCES)
    photo(folder / "flickr30k-images/36.jpg", (40, 30))
    return folder / f"{split}.txt"
