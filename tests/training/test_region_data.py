"""What regions are learned from: samples, the views that are kept of them, control words and the tags that hold."""

import json
import multiprocessing
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_regions import noise, tiny_spine

from evcap.datasets.collages import Collage
from evcap.datasets.phrases import Region, read_class_boxes, read_phrases
from evcap.images.opening import open_image, to_tensor
from evcap.regions.control_words import dropped
from evcap.regions.views import CANDIDATES, checked_regions, located_views, selected_ratios, view_scores
from evcap.training import region_data
from evcap.training.region_data import RegionFile, Sample, cached_views, drawn_ratios, hashed_ratios, opened, read_samples
from evcap.training.region_words import COLOURS, colour_choice, in_each_colour, tag_targets, vocabulary, words_of

PHRASES = RegionFile("phrases.json", "images")
CLASSES = RegionFile("boxes.json", "images", classes=True)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Five photos with two phrase boxes and one class box each; the cache beside them."""
    monkeypatch.setenv("EVCAP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    images, phrases, boxes = [], [], []
    for n in range(5):
        width, height = 80 + 8 * n, 64
        noise(width, height, n).save(folder / "images" / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "width": width, "height": height})
        for k, (text, kind) in enumerate([("a red shirt", "clothing"), ("two dogs", "animals")]):
            bbox = [4 + 5 * n + 20 * k, 6, 30, 30 + k]
            phrases.append({"id": 2 * n + k, "image_id": n, "bbox": bbox, "phrases": [text], "types": [kind]})
        box = {"id": n, "image_id": n, "bbox": [10, 10, 40, 20 + n], "category_id": 1 + n % 2, "iscrowd": 0, "area": 9}
        boxes.append(box)
    (folder / "phrases.json").write_text(json.dumps({"images": images, "annotations": phrases}))
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "car"}]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return folder


def test_samples_are_the_regions_of_the_files(data):
    samples = read_samples([PHRASES, CLASSES], data, 0.0, 0)
    phrases, boxes = (
        read(data / f, data / "images") for read, f in ((read_phrases, "phrases.json"), (read_class_boxes, "boxes.json"))
    )
    assert sorted(s.region.box + s.region.phrases for s in samples if not s.in_class) == sorted(
        r.box + r.phrases for r in phrases
    )
    assert sorted(s.region.path for s in samples if s.in_class) == sorted(r.path for r in boxes)
    assert all(s.source == s.region.path for s in samples)
    assert samples == read_samples([PHRASES, CLASSES], data, 0.0, 0)
    few = read_samples([RegionFile("phrases.json", "images", most=3)], data, 0.0, 0)
    assert len(few) == 3 and {s.region for s in few} < set(phrases)


def test_a_share_of_the_photos_stands_on_canvases(data):
    samples = read_samples([PHRASES], data, 0.8, 1)
    on_canvas = [s for s in samples if isinstance(s.source, Collage)]
    photos = {s.region.path for s in on_canvas}
    assert len(photos) == 4 and len(samples) == 10
    assert not photos & {s.region.path for s in samples if not isinstance(s.source, Collage)}
    for sample in on_canvas:
        assert sample.region.size == sample.source.size == opened(sample.source).size
        assert sample.region.path in [path for path, _ in sample.source.parts]
    assert samples == read_samples([PHRASES], data, 0.8, 1) != read_samples([PHRASES], data, 0.8, 2)


def test_ratios_of_views(data):
    samples = read_samples([PHRASES], data, 0.0, 0)
    drawn = drawn_ratios(samples, 3, 0)
    assert drawn.shape == (10, 5) and (drawn[:, 0] == 0).all() and (drawn[:, -1] == 1).all()
    assert all(len(set(row)) == 5 and set(row[1:-1]) <= set(CANDIDATES[:-1]) for row in drawn.tolist())
    assert len({tuple(row) for row in drawn.tolist()}) > 5 and (drawn == drawn_ratios(samples, 3, 0)).all()
    hashed = hashed_ratios(samples, 3)
    for sample, row in zip(samples, hashed, strict=True):
        image = open_image(sample.region.path)
        regions = checked_regions([sample.region.box], *image.size)
        assert row.tolist() == selected_ratios(view_scores(image, regions), 3)[0].tolist()


def test_views_are_the_tower_on_crops_made_by_hand_and_shared_crops_are_kept_once(data):
    model = tiny_spine()
    samples = read_samples([PHRASES, CLASSES], data, 0.6, 1)
    ratios = np.tile([0.0, 0.4, 1.0], (len(samples), 1))
    found = cached_views(model, samples, ratios, data)
    distinct, vision = set(), model.preset.vision
    for number, sample in enumerate(samples):
        image = opened(sample.source)
        region = checked_regions([sample.region.box], *image.size)
        crops, inside = located_views(region, ratios[number : number + 1], *image.size, 64)
        distinct |= {(sample.source, tuple(crop)) for crop in crops[0].tolist()}
        views = [image.crop(crop).resize((64, 64), Image.Resampling.BICUBIC) for crop in crops[0].tolist()]
        with torch.inference_mode():
            expected = model.backbone(to_tensor(views, 64, vision.mean, vision.std))
        tokens, boxes = found.take([number], np.arange(3)[None])
        torch.testing.assert_close(tokens[0], expected, atol=0.02, rtol=0.02)  # half precision
        assert (boxes[0].numpy() == inside[0]).all()
    assert len(found.rows) == len(distinct) < 3 * len(samples)
    tokens, boxes = found.take([4, 2], np.array([[2, 0], [0, 1]]))
    assert tokens.shape == (2, 2, 4, 20) and tokens.dtype == boxes.dtype == torch.float32
    assert torch.equal(tokens[0, 0], found.take([4], np.array([[2]]))[0][0, 0])
    assert torch.equal(boxes[1, 1], found.take([2], np.array([[1]]))[1][0, 0])


def stores(data) -> set:
    return {path.name for path in (data.parent / "cache" / "features").glob("*.f16")}


def test_views_are_computed_once_and_anew_for_what_has_changed(data):
    model = tiny_spine()
    samples = read_samples([PHRASES], data, 0.4, 1)
    ratios = np.tile([0.0, 1.0], (len(samples), 1))
    first = cached_views(model, samples, ratios, data)
    seen, before = model.backbone.rows, stores(data)
    again = cached_views(model, samples, ratios, data)
    assert model.backbone.rows == seen == len(first.rows) and stores(data) == before
    assert np.array_equal(first.rows, again.rows)
    for changed in ("photo", "on a canvas", "ratios", "weights"):
        if changed == "ratios":
            ratios[0, 1] = 0.3
        elif changed == "weights":
            with torch.no_grad():
                model.backbone.mixed.bias += 1
        else:
            canvas = [s for s in samples if isinstance(s.source, Collage) == (changed == "on a canvas")]
            noise(*open_image(canvas[0].region.path).size, 99).resize((88, 64)).save(canvas[0].region.path)
        cached_views(model, samples, ratios, data)
        assert len(stores(data)) > len(before), changed
        before = stores(data)


def part(data, number: int) -> None:
    torch.set_num_threads(1)
    samples = read_samples([PHRASES], data, 0.4, 1)
    cached_views(tiny_spine(), samples, np.tile([0.0, 1.0], (len(samples), 1)), data, share=(number, 2))


def test_two_processes_fill_the_views_together(data, monkeypatch):
    monkeypatch.setattr(region_data, "BATCH", 4)
    workers = [multiprocessing.get_context("fork").Process(target=part, args=(data, number)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    model, samples = tiny_spine(), read_samples([PHRASES], data, 0.4, 1)
    found = cached_views(model, samples, np.tile([0.0, 1.0], (len(samples), 1)), data)
    assert model.backbone.rows == 0  # nothing was left
    monkeypatch.setenv("EVCAP_CACHE", str(data.parent / "another"))
    alone = cached_views(model, samples, np.tile([0.0, 1.0], (len(samples), 1)), data)
    np.testing.assert_allclose(found.rows, alone.rows, atol=1e-3)


# -- words


def sample_of(phrases, in_class=False) -> Sample:
    from pathlib import Path

    from evcap.datasets.phrases import Region

    region = Region(0, Path("a.png"), (0, 0, 9, 9), tuple(phrases), (), (9, 9), (9, 9))
    return Sample(region.path, region, in_class)


def test_words_targets_and_what_is_known():
    samples = [
        sample_of(["A red shirt.", "the shirt"]),
        sample_of(["two dogs"]),
        sample_of(["sports ball"], in_class=True),
    ]
    words = words_of(samples)
    assert words[0] == ["red shirt", "shirt"] and words[2] == ["sports ball"] and "dogs" in words[1]
    tags, classes = ["red", "shirt", "sports ball", "dogs", "ball"], ["sports ball", "shirt"]
    holds, known = tag_targets(samples, words, tags, classes)
    assert holds.tolist() == [
        [True, True, False, False, False],
        [False, False, False, True, False],
        [False, False, True, False, True],
    ]
    assert known.tolist() == [[True] * 5, [True] * 5, [False, True, True, False, False]]


def test_a_vocabulary_is_what_is_frequent():
    words = [["red shirt", "shirt"], ["red"], ["blue shirt", "shirt"], ["dog"]]
    assert vocabulary(words, 2) == ["shirt", "red"] or set(vocabulary(words, 2)) == {"shirt", "red"}
    assert set(vocabulary(words, 1)) == {"red shirt", "shirt", "red", "blue shirt", "blue", "dog"}


def test_dropped_words_are_some_of_them():
    draw = random.Random(0)
    drawn = [dropped(["red", "dog"], draw) for _ in range(400)]
    assert set(drawn) == {"|", "red|", "dog|", "red,dog|", "dog,red|"}
    assert 0.5 < drawn.count("|") / 400 < 0.75  # a half, and a quarter of the other half


def test_a_phrase_of_one_colour_stands_in_each():
    own, phrases = in_each_colour("a grey and gray coat")
    assert COLOURS[own] == "gray" and phrases[own] == "a gray and gray coat"
    assert phrases[COLOURS.index("red")] == "a red and red coat" and len(set(phrases)) == len(COLOURS)
    assert in_each_colour("a bored man") is None  # no word of it is a colour
    assert in_each_colour("a red and white shirt") is None
    assert in_each_colour("a big coat") is None


def test_the_colours_of_people_and_classes_are_not_asked_for():
    def sample(types, in_class=False):
        region = Region(1, Path("1.png"), (0, 0, 5, 5), ("an orange",), types, (9, 9), (9, 9))
        return Sample(region.path, region, in_class)

    assert colour_choice(sample(("clothing",)), "a red shirt") == in_each_colour("a red shirt")
    assert colour_choice(sample(("people",)), "a black man") is None
    assert colour_choice(sample((), in_class=True), "an orange") is None
