"""Retrieval over tiles: scores in closed form, the release's rule on small tables, places on an image of plain colours."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evcap.config import RetrievalConfig
from evcap.gigapixel.search.gallery import Gallery
from evcap.gigapixel.search.retrieval import SHARPNESS, Retriever, _windows, contrasted, imagerag_selection
from evcap.gigapixel.tiles.index import TileIndex
from evcap.gigapixel.tiles.plans import make_plan
from evcap.memory.memory import VisualNameMemory
from evcap.raster.raster import Raster

COLOURS = {"fire": (250, 20, 20), "grass": (20, 200, 20), "water": (20, 20, 250), "snow": (250, 250, 250)}


class ColourTower:
    """Sees a tile as its mean colour, and reads the names of colours as these."""

    shape, image_size, encoder_fingerprint = (2, 4), 32, "colours"

    def query_features(self, images, batch_size):
        colours = np.stack([np.asarray(image, np.float32).reshape(-1, 3).mean(0) for image in images]) / 255
        features = np.concatenate([colours - 0.4, np.full((len(images), 1), 0.2)], axis=1).astype(np.float32)
        return torch.from_numpy(np.stack([features, features * 0.5], axis=1))

    def read(self, phrases):
        images = [Image.new("RGB", (1, 1), COLOURS.get(phrase.rstrip("s"), (102, 102, 102))) for phrase in phrases]
        return torch.nn.functional.normalize(self.query_features(images, 1)[:, 0], dim=-1)


def colour_gallery(*names: str) -> Gallery:
    keys = ColourTower().read(names).numpy()
    return Gallery(VisualNameMemory.build(keys, list(names), ["test"] * len(names), [f"{n}.png" for n in names], "colours"))


@pytest.fixture
def painted(tmp_path):
    """A function: patches {box: colour name} -> the complete index of a grey image of 400 x 300 with these patches."""

    def paint(patches: dict[tuple, str]) -> TileIndex:
        pixels = np.full((300, 400, 3), 102, np.uint8)
        for (x1, y1, x2, y2), name in patches.items():
            pixels[y1:y2, x1:x2] = COLOURS[name]
        Image.fromarray(pixels).save(tmp_path / "image.png")
        raster = Raster(tmp_path / "image.png")
        plan = make_plan("pyramid", 400, 300, side=32)
        index = TileIndex.open(tmp_path / "index", raster, plan, "colours", ColourTower.shape)
        index.fill(ColourTower())
        return index

    return paint


RULE = RetrievalConfig(fast=-0.2, slow=0.7, both=0.5, slope=0.01)


@given(own=st.floats(-1, 1), rivals=st.lists(st.floats(-1, 1), max_size=5))
def test_contrast_is_the_log_share_of_the_softmax(own, rivals):
    shares = [math.exp(SHARPNESS * value) for value in [own, *rivals]]
    got = contrasted(np.array([own]), np.array([rivals]).reshape(1, -1))
    assert got[0] == pytest.approx(math.log(shares[0] / sum(shares)) / SHARPNESS, abs=1e-9)


def test_places_are_where_the_colour_is(painted):
    patches = {(40, 40, 72, 72): "fire", (301, 211, 333, 243): "fire", (150, 100, 182, 132): "water"}
    index = painted(patches)
    retriever = Retriever(ColourTower(), [colour_gallery(*COLOURS)], RULE)
    fire, snow = retriever.find(index, ["fire", "snow"], "both", 6)
    sure = sorted(place.box for place in fire if place.sure)
    assert len(sure) == 2
    for box, patch in zip(sure, [(40, 40, 72, 72), (301, 211, 333, 243)], strict=True):
        assert max(abs(a - b) for a, b in zip(box, patch, strict=True)) < 20
    assert not any(place.sure for place in snow)
    assert [place.score for place in fire] == sorted((place.score for place in fire), reverse=True)


@pytest.mark.parametrize("way", ["fast", "slow", "both"])
def test_second_look_never_scores_below_the_first(painted, way):
    index = painted({(45, 50, 77, 82): "water"})
    retriever = Retriever(ColourTower(), [colour_gallery("water", "grass")], RULE)
    first = max(retriever.scores(index, ["water"])[0].of(way))
    assert retriever.find(index, ["water"], way, 3)[0][0].score >= first - 1e-6


def test_a_phrase_that_is_no_label_has_the_fast_path_alone(painted):
    index = painted({(40, 40, 72, 72): "fire"})
    retriever = Retriever(ColourTower(), [colour_gallery("water", "grass")], RULE)
    assert retriever.scores(index, ["fire"])[0].slow is None
    assert retriever.find(index, ["fire"], "slow") == [[]]
    (place, *_) = retriever.find(index, ["fire"], "both")[0]
    assert place.path == "fast"


def test_the_first_gallery_that_knows_the_phrase_answers(painted):
    index = painted({(40, 40, 72, 72): "fire"})
    known, empty = colour_gallery("fire", "grass"), colour_gallery("water")
    alone = Retriever(ColourTower(), [known], RULE).scores(index, ["fire"])[0].slow
    behind = Retriever(ColourTower(), [empty, known], RULE).scores(index, ["fire"])[0].slow
    assert np.allclose(alone, behind)


def test_scores_do_not_depend_on_how_tiles_are_cut_into_parts(painted):
    index = painted({(40, 40, 72, 72): "fire"})
    retriever = Retriever(ColourTower(), [colour_gallery(*COLOURS)], RULE)
    whole = index.queries(index.numbers())
    parts = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    for a, b in zip(retriever.scores(index, ["fire"]), retriever.scores(parts, ["fire"]), strict=True):
        assert np.allclose(a.fast, b.fast, atol=1e-6)
        assert np.allclose(a.slow, b.slow, atol=1e-6)


def test_what_labels_say_of_an_index_is_kept_until_it_grows(painted, monkeypatch):
    index = painted({(40, 40, 72, 72): "fire", (150, 100, 182, 132): "water"})
    everything, half = index.states.copy(), index.numbers()[::2]
    index.states[half] = 0
    retriever, compared = Retriever(ColourTower(), [colour_gallery(*COLOURS)], RULE), []
    similarity = Gallery.similarity
    monkeypatch.setattr(Gallery, "similarity", lambda *given: compared.append(len(given[1])) or similarity(*given))
    retriever.scores(index, ["fire"])
    few = len(index.numbers())
    for _ in range(2):
        retriever.scores(index, ["water"])
    assert sum(compared) == few
    index.states[:] = everything
    grown = retriever.scores(index, ["fire", "water"])
    assert sum(compared) == few + len(everything)
    anew = Retriever(ColourTower(), [colour_gallery(*COLOURS)], RULE).scores(index, ["fire", "water"])
    for kept, fresh in zip(grown, anew, strict=True):
        assert np.array_equal(kept.fast, fresh.fast)
        assert np.array_equal(kept.slow, fresh.slow)


def test_thresholds_grow_with_the_logarithm_of_the_tiles():
    retriever = Retriever(ColourTower(), [], RetrievalConfig(fast=-0.1, slow=0.0, both=0.0, slope=0.05))
    assert retriever.threshold("fast", 1000) == pytest.approx(-0.1)
    assert retriever.threshold("fast", 50_000) == pytest.approx(-0.1 + 0.05 * math.log(50))


@given(scores=st.lists(st.floats(-1, 1, width=32), max_size=6), lead=st.floats(0, 1), tiles=st.integers(1, 10**6))
def test_places_count_if_the_best_of_them_leads(scores, lead, tiles):
    scores = sorted(scores, reverse=True)
    retriever = Retriever(ColourTower(), [], RetrievalConfig(fast=-0.1, slow=0.0, both=0.2, slope=0.05, lead=lead))
    level = 0.2 + 0.05 * math.log(tiles / 1000)
    expected = [scores[0] > level + lead and score > level for score in scores]
    assert retriever.sure(np.array(scores), "both", tiles).tolist() == expected
    level = -0.1 + 0.05 * math.log(tiles / 1000)
    assert retriever.sure(np.array(scores), "fast", tiles).tolist() == [score > level for score in scores]


def test_a_lead_that_nothing_has_leaves_no_place_sure(painted):
    index = painted({(40, 40, 72, 72): "fire"})
    best = Retriever(ColourTower(), [colour_gallery(*COLOURS)], RULE).find(index, ["fire"])[0][0]
    retriever = Retriever(ColourTower(), [colour_gallery(*COLOURS)], dataclasses.replace(RULE, lead=2.0))
    assert best.sure and not any(place.sure for place in retriever.find(index, ["fire"])[0])
    assert retriever.find(index, ["fire"])[0][0] == dataclasses.replace(best, sure=False)
    assert not retriever.survey(index, ["fire"], 3)


@given(size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), data=st.data())
def test_windows_lie_inside_the_picture(size, data):
    width, height = size
    x = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    windows = _windows(np.array([x[0], y[0], x[1], y[1]]), width, height)
    assert windows.shape == (4, 4)
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= [width, height]).all()
    assert (windows[:, 2:] > windows[:, :2]).all()


# -- the release's rule


def spread(*rows):
    """Cosines whose softmax at scale 1 has these shares."""
    return np.log(np.array(rows, np.float64))


def test_reference_takes_what_exceeds_the_threshold_strictly():
    assert imagerag_selection(spread([0.5, 0.25, 0.25]), 1.0, 0.5) == []
    assert imagerag_selection(spread([0.52, 0.24, 0.24]), 1.0, 0.5) == [(0, pytest.approx(0.52))]


def test_reference_takes_the_two_commonest_and_each_best_of_the_others():
    rows = spread([0.6, 0.3, 0.05, 0.05], [0.55, 0.35, 0.05, 0.05], [0.1, 0.2, 0.12, 0.58])
    found = imagerag_selection(rows, 1.0, 0.0)
    assert [tile for tile, _ in found] == [0, 3, 1]  # 0 and 1 occur most often; 3 is the third phrase's best
    assert [share for _, share in found] == pytest.approx([0.6, 0.58, 0.35])


def test_reference_may_name_a_tile_twice():
    rows = spread([0.4, 0.4, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.7, 0.1])
    assert [tile for tile, _ in imagerag_selection(rows, 1.0, 0.3)].count(2) in (1, 2)


def test_a_lead_that_passes_among_385_tiles_does_not_among_50_176():
    """Facts: at scale 100 probability 0.5 needs a lead of ln(m-1)/100, 0.060 at 385 tiles, 0.108 at 50,176."""
    for tiles, lead in ((385, 0.0596), (50_176, 0.1082)):
        cosines = np.zeros((1, tiles))
        for extra, passes in ((0.001, True), (-0.001, False)):
            cosines[0, 7] = lead + extra
            assert bool(imagerag_selection(cosines)) == passes
