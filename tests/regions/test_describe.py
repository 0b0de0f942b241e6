"""RegionDescriber: the same of each region in any batch and beside any boxes; each crop seen once; tags, class, words."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_regions import REGIONS, noise, scrambled, tiny_captioner, tiny_spine

from evcap.config import DecodingConfig
from evcap.errors import EvcapError
from evcap.images.opening import to_tensor
from evcap.language.sentences import sentence_embedder
from evcap.memory.memory import VisualNameMemory
from evcap.regions.describe import RegionDescriber
from evcap.regions.model import RegionModel
from evcap.regions.views import crop_boxes, selected_ratios, view_boxes, view_scores
from evcap.runtime import full_precision

TAGS, CLASSES = ["red", "dog", "grass", "wheel", "sky"], ["person", "car", "tree"]
SHORT = DecodingConfig(beams=2, max_length=5)
IMAGE = noise(120, 80)
BOXES = [(10, 10, 50, 60), (3.5, 2.25, 90, 70), (60, 20, 100, 79), (0, 0, 120, 80), (100, 5, 101, 40)]


def describer(**changes) -> RegionDescriber:
    regions = dataclasses.replace(REGIONS, text_width=384, decoding=SHORT, **changes)
    spine = tiny_spine(regions=regions)
    model = scrambled(RegionModel(spine, spine.language))
    return RegionDescriber(tiny_captioner(spine), model, TAGS, CLASSES)


@pytest.fixture(scope="module")
def shared() -> RegionDescriber:
    return describer()


@pytest.fixture
def one() -> RegionDescriber:
    """One that a test may change."""
    return describer()


def same(first, second) -> bool:
    """The same is said, to the rounding of similarities."""
    names = [[(name.name, pytest.approx(name.similarity, abs=1e-5)) for name in row.names] for row in first]
    others = [[(name.name, name.similarity) for name in row.names] for row in second]
    fields = ("box", "captions", "tags", "class_name", "views")
    return others == names and all(
        getattr(a, field) == getattr(b, field) for a, b in zip(first, second, strict=True) for field in fields
    )


def test_what_is_said_does_not_depend_on_the_batch_or_on_other_boxes(shared):
    whole = shared.describe(IMAGE, BOXES, num_captions=2)
    assert [row.box for row in whole] == [tuple(map(float, box)) for box in BOXES]
    assert all(len(row.captions) == 2 and row.caption == row.captions[0] for row in whole)
    assert len({row.names[0].similarity for row in whole}) > 1 and all(row.views[0] == 0 for row in whole)
    for size in (1, 2):
        assert same(whole, shared.describe(IMAGE, BOXES, num_captions=2, batch_size=size))
    order = [3, 0, 4, 2, 1]
    assert same([whole[n] for n in order], shared.describe(IMAGE, [BOXES[n] for n in order], num_captions=2, batch_size=2))
    for box, expected in zip(BOXES, whole, strict=True):
        assert same([expected], shared.describe(IMAGE, [box], num_captions=2))
    assert shared.describe(IMAGE, []) == []


@given(
    corners=st.lists(st.tuples(*[st.integers(0, 10)] * 4), min_size=1, max_size=7),
    repeated=st.integers(1, 3),
    batch_size=st.integers(1, 4),
    ends=st.booleans(),
)
def test_every_crop_goes_through_the_tower_once(shared, corners, repeated, batch_size, ends):
    boxes = [(8 * min(a, b), 5 * min(c, d), 8 * max(a, b) + 9, 5 * max(c, d) + 9) for a, b, c, d in corners] * repeated
    regions = np.array(boxes, np.float32)
    ratios = np.tile([0.0, 0.4, 1.0], (len(boxes), 1)) if ends else selected_ratios(view_scores(IMAGE, regions), 3)
    crops = crop_boxes(view_boxes(regions, ratios, 120, 80), 120, 80)
    tower = shared.captioner.model.backbone
    tower.rows = 0
    parts = list(shared.query_features(IMAGE, regions, ratios, batch_size))
    assert tower.rows == len({tuple(crop) for crop in crops.reshape(-1, 4).tolist()})
    assert [number for part, _ in parts for number in range(len(boxes))[part]] == list(range(len(boxes)))
    assert sum(len(queries) for _, queries in parts) == len(boxes)


@torch.no_grad()
def test_query_features_are_those_of_crops_made_by_hand(shared):
    regions, ratios = np.array(BOXES[:3], np.float32), np.tile([0.0, 0.3, 1.0], (3, 1))
    vision, model = shared.captioner.preset.vision, shared.model
    (part, found), *rest = shared.query_features(IMAGE, regions, ratios)
    assert part == slice(0, 32) and not rest
    for number, (x1, y1, x2, y2) in enumerate(BOXES[:3]):
        tokens, inside = [], []
        for t in (0.0, 0.3, 1.0):
            crop = [int(v) for v in np.float32([x1 - t * x1, y1 - t * y1, x2 + t * (120 - x2), y2 + t * (80 - y2)])]
            view = IMAGE.crop(crop).resize((64, 64), Image.Resampling.BICUBIC)
            tokens.append(model.spine.backbone(to_tensor([view], 64, vision.mean, vision.std))[0])
            own = [int(v) for v in (x1, y1, x2, y2)]
            sides = crop[2] - crop[0], crop[3] - crop[1]
            inside.append([int((own[k] - crop[k % 2]) * 64 / sides[k % 2] + 1e-4) for k in range(4)])
        expected = model.queries(torch.stack(tokens)[None], torch.tensor([inside]).float())
        torch.testing.assert_close(found[number], expected[0], atol=1e-4, rtol=1e-4)


def test_who_goes_on_between_two_batches_keeps_its_own_precision(shared):
    regions = np.array(BOXES, np.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for _, queries in shared.query_features(IMAGE, regions, np.tile([0.0, 0.5, 1.0], (5, 1)), 2):
            assert torch.is_autocast_enabled("cpu") and queries.dtype == torch.float32


@torch.no_grad()
def test_tags_are_those_above_the_threshold_most_probable_first(shared):
    queries = torch.randn(6, 6, 24)
    logits = shared.model.tag_head(queries, sentence_embedder()(TAGS))
    found = shared.tags_of(queries)
    for row, tags in zip(logits.sigmoid().tolist(), found, strict=True):
        assert tags == [tag for p, tag in sorted(zip(row, TAGS, strict=True), reverse=True) if p > 0.5]
    assert 0 < sum(map(len, found)) < 6 * len(TAGS)


@torch.no_grad()
def test_the_class_is_the_best_of_the_raw_scores(one):
    queries = torch.randn(8, 6, 24)
    best = one.model.region_text_head(queries, sentence_embedder()(CLASSES)).argmax(1)
    assert one.classes_of(queries) == [CLASSES[number] for number in best.tolist()]
    one.set_classes(["zebra"])
    assert set(one.classes_of(queries)) == {"zebra"}


def asked(one: RegionDescriber, monkeypatch) -> list:
    """The control words and names of each call of the language model, as a list that grows."""
    calls, captions = [], one.model.captions

    def listening(queries, names, controls, *rest):
        calls.append((names, controls))
        return captions(queries, names, controls, *rest)

    monkeypatch.setattr(one.model, "captions", listening)
    return calls


def test_without_a_vocabulary_there_are_no_tags_and_no_class(one, monkeypatch):
    one.set_tags([])
    one.set_classes([])
    calls = asked(one, monkeypatch)
    (found,) = one.describe(IMAGE, BOXES[:1])
    assert found.tags == [] and found.class_name == "" and found.caption
    assert calls[0][1] == ["|"]


def test_words_of_the_user_and_tags_reach_the_prompt(one, monkeypatch):
    one.config = dataclasses.replace(one.config, tag_threshold=0.0)  # all tags
    calls = asked(one, monkeypatch)
    plain, told = one.describe(IMAGE, BOXES[:1])[0], one.describe(IMAGE, BOXES[:1], words=["shiny", "red"])[0]
    assert sorted(plain.tags) == sorted(TAGS) and calls[0][1] == [",".join(plain.tags) + "|"]
    assert calls[1][1] == [",".join(["shiny", "red", *(tag for tag in plain.tags if tag != "red")]) + "|"]
    assert told.tags == plain.tags


def test_names_may_join_the_control_words(monkeypatch):
    one = describer(names_as_words=True)
    one.set_tags([])
    calls = asked(one, monkeypatch)
    (found,) = one.describe(IMAGE, BOXES[:1], words=["shiny"])
    names = [name.name for name in found.names]
    assert names and calls[0][1] == [",".join(["shiny", *names]) + "|"]


def test_an_edited_memory_shows_at_once(one, monkeypatch):
    calls, before = asked(one, monkeypatch), one.describe(IMAGE, BOXES[:1])[0]
    old = one.captioner.memory
    assert before.names
    names = ["teapot" if name == before.names[0].name else name for name in old.names]
    one.captioner.memory = VisualNameMemory.build(old.keys, names, old.sources, old.images, old.encoder)
    after = one.describe(IMAGE, BOXES[:1])[0]
    assert after.names[0].name == "teapot" and calls[1][0][0][0] == "teapot"
    one.captioner.memory = VisualNameMemory.empty(24, "tiny")
    assert one.describe(IMAGE, BOXES[:1])[0].names == []


def test_captions_are_chosen_by_the_region_text_score_where_it_weighs(one):
    """With all the weight, the best of the beams is the one whose text fits best."""
    plain = one.describe(IMAGE, BOXES[:2], num_captions=4)
    one.captioner.memory = VisualNameMemory.empty(24, "tiny")  # a name that a caption says would lead
    plain = one.describe(IMAGE, BOXES[:2], num_captions=4, decoding=dataclasses.replace(SHORT, beams=4))
    heavy = one.describe(IMAGE, BOXES[:2], num_captions=4, decoding=dataclasses.replace(SHORT, beams=4, itc_weight=1e6))
    ratios = np.array([row.views for row in plain])
    ((_, queries),) = one.query_features(IMAGE, np.array(BOXES[:2], np.float32), ratios)
    for row, (before, after) in enumerate(zip(plain, heavy, strict=True)):
        scores = one.scores(queries[row : row + 1], sentence_embedder()(before.captions))[0].tolist()
        assert after.captions == [text for _, text in sorted(zip(scores, before.captions, strict=True), reverse=True)]


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((5, 5, 5, 9), "is empty"),
        ((9, 5, 5, 9), "swapped corners"),
        ((200, 5, 300, 9), "lies outside the image, which is 120 x 80 pixels"),
        ((1, 2, 3), "is not four numbers"),
        ((0, 0, float("nan"), 9), "no finite number"),
    ],
)
def test_a_box_that_cannot_be_described_is_told_in_one_line(shared, box, said):
    with pytest.raises(EvcapError, match=said) as raised:
        shared.describe(IMAGE, [BOXES[0], box])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"words": "red"}, "words is the text 'red'"), ({"num_captions": 0}, "at least 1"), ({"batch_size": 0}, "at least 1")],
)
def test_what_cannot_be_asked_for_is_told_in_one_line(shared, given, said):
    with pytest.raises(EvcapError, match=said) as told:
        shared.describe(noise(60, 40), [(5, 5, 30, 30)], **given)
    assert "\n" not in str(told.value)


def test_an_unknown_task_is_told(shared):
    with pytest.raises(EvcapError, match="unknown task 'colour', known: auto, attributes, caption"):
        shared.describe(IMAGE, BOXES[:1], task="colour")
    assert shared.describe(IMAGE, BOXES[:1], task="attributes")[0].views[1] == 0.1


def test_texts_of_an_unknown_kind_are_refused():
    spine = tiny_spine(regions=dataclasses.replace(REGIONS, texts="bert"))
    with pytest.raises(EvcapError, match="texts is 'bert', known: minilm, eva-clip"):
        RegionDescriber(tiny_captioner(spine), RegionModel(spine, spine.language))


def test_no_precision_is_left_behind(shared):
    with full_precision("cpu"):
        list(shared.query_features(IMAGE, np.array(BOXES[:1], np.float32), np.array([[0.0, 0.5, 1.0]])))
    assert not torch.is_autocast_enabled("cpu")
