"""Galleries: which labels a phrase means, which exclude each other, and what stands for a label; against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evcap.errors import EvcapError
from evcap.gigapixel.search.gallery import CLUSTER_DISTANCE, DELTA, Gallery
from evcap.language.sentences import sentence_embedder
from evcap.memory.memory import VisualNameMemory


def gallery(names: list[str], images: list[str] | None = None, keys: np.ndarray | None = None, delta: float = DELTA) -> Gallery:
    keys = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32) if keys is None else keys
    images = images or [f"{i}.jpg" for i in range(len(names))]
    return Gallery(VisualNameMemory.build(keys, names, ["test"] * len(names), images, "any"), delta)


def embedded(phrase: str) -> np.ndarray:
    return sentence_embedder()([phrase]).numpy()[0]


LABELS = ["airplane", "boat", "car", "dense residential area", "medium residential area", "storage tanks", "forest"]


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("airplanes", ["airplane"]),
        ("planes", ["airplane"]),
        ("a storage tank", ["storage tanks"]),
        ("vehicles", ["car"]),
        ("dense residential area", ["dense residential area"]),  # not its neighbour, which is as near as "vehicles" to "car"
        ("residential area", ["medium residential area", "dense residential area"]),
        ("a wind turbine", []),
    ],
)
def test_labels_that_a_phrase_means(phrase, expected):
    found = gallery(LABELS, delta=0.51)
    assert [found.labels[i] for i in found.match(embedded(phrase))] == expected


def test_delta_is_a_squared_distance_that_is_still_inside():
    found = gallery(LABELS)
    phrase = embedded("vehicles")
    distance = float(((found.texts[found.labels.index("car")] - phrase) ** 2).sum())
    assert gallery(LABELS, delta=distance + 1e-3).match(phrase) == [found.labels.index("car")]
    assert gallery(LABELS, delta=distance - 1e-3).match(phrase) == []  # embeddings are kept in half precision


def test_each_gallery_on_disk_has_its_own_distance(tmp_path):
    for name in ("a=0.2", "mine"):
        gallery(["x"]).memory.save(tmp_path / name)
    given = tmp_path / "a=0.2", tmp_path / "mine", f"{tmp_path}/mine=0.8", f"{tmp_path}/a=0.2=1"
    assert [Gallery.open(named, "any").delta for named in given] == [DELTA, DELTA, 0.8, 1]
    for wrong in ("mine=near", "mine=-1", "mine=5", "mine=nan"):
        with pytest.raises(EvcapError, match="squared distance of 0 to 4"):
            Gallery.open(tmp_path / wrong, "any")
    with pytest.raises(EvcapError):
        Gallery.open(tmp_path / "mine", "other")


def test_labels_that_share_pictures_are_no_rivals():
    names = ["harbor"] * 4 + ["boat"] * 2 + ["forest"] * 2
    found = gallery(names, ["1", "2", "3", "4", "1", "2", "5", "6"])
    rivals = dict(zip(found.labels, found.rivals(embedded("boats")), strict=True))
    assert rivals == {"harbor": False, "boat": False, "forest": True}
    assert gallery(names, list("12345678")).rivals(embedded("boats")).tolist() == [True, False, True]


def test_similarity_is_the_mahalanobis_cosine():
    rng = np.random.default_rng(1)
    names = ["a"] * 20 + ["b"] * 30 + ["c"] * 10
    found = gallery(names, keys=(rng.normal(size=(60, 8)) * np.linspace(0.2, 2, 8)).astype(np.float32))
    tiles = rng.normal(size=(5, 8)).astype(np.float32)
    rows = {label: found.keys(label).astype(np.float64) for label in found.labels}
    within = sum((keys - keys.mean(0)).T @ (keys - keys.mean(0)) for keys in rows.values()) / 60
    inverse = np.linalg.inv((within + np.eye(8) * np.trace(within) / 8) / 2)
    centre = found.prototypes.mean(0)
    expected = [
        [x @ inverse @ y / np.sqrt((x @ inverse @ x) * (y @ inverse @ y)) for y in found.prototypes - centre]
        for x in tiles - centre
    ]
    assert np.allclose(found.similarity(tiles, found.label_vectors("mean")), expected, atol=1e-4)


def test_similarity_sees_past_what_differs_within_labels():
    """Two labels apart in the second of two directions; within them images differ more in the first."""
    rng = np.random.default_rng(2)
    kinds = np.repeat([0.1, -0.1], 50)
    keys = np.stack([rng.normal(0, 0.6, 100), kinds + rng.normal(0, 0.03, 100), np.full(100, 1.0)], axis=1).astype(np.float32)
    found = gallery(["up"] * 50 + ["down"] * 50, keys=keys)
    tiles = np.concatenate([found.keys("up"), found.keys("down")])
    truth = np.repeat([0, 1], 50)
    assert (found.similarity(tiles, found.label_vectors("mean")).argmax(1) == truth).mean() > 0.95
    assert ((tiles @ found.prototypes.T).argmax(1) == truth).mean() < 0.85


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_small_galleries_have_similarities(names):
    found = gallery(names)
    similarity = found.similarity(np.asarray(found.memory.keys, np.float32), found.label_vectors("cluster"))
    assert np.isfinite(similarity).all()
    assert similarity[0].argmax() == 0


def test_prototypes_are_unit_means_of_the_keys():
    found = gallery(["b", "a", "b", "b"])
    keys = np.asarray(found.memory.keys, np.float64)
    for label, rows in (("b", [0, 2, 3]), ("a", [1])):
        mean = keys[rows].mean(0)
        assert np.allclose(found.prototypes[found.labels.index(label)], mean / np.linalg.norm(mean), atol=1e-6)


def test_rerank_takes_the_three_nearest_to_the_phrase():
    found = gallery(["x"] * 6)
    keys, phrase = found.keys("x"), np.eye(8, dtype=np.float32)[0]
    best = sorted(range(6), key=lambda i: -keys[i, 0])[:3]
    mean = keys[best].mean(0)
    assert np.allclose(found.reduce(0, "rerank", phrase), mean / np.linalg.norm(mean), atol=1e-6)


@given(angles=st.lists(st.floats(0, 3), min_size=1, max_size=12))
def test_cluster_is_the_largest_that_chains_of_neighbours_make(angles):
    keys = np.array([[np.cos(a), np.sin(a), 0, 0, 0, 0, 0, 0] for a in angles], np.float32)
    found = gallery(["x"] * len(angles), keys=keys)
    keys = found.keys("x")
    near = [[np.linalg.norm(a - b) <= CLUSTER_DISTANCE for b in keys] for a in keys]
    clusters, left = [], {i for i in range(len(keys)) if sum(near[i]) >= 2}
    while left:  # with two points a cluster, every point with a neighbour is at its core: clusters are connected parts
        part, front = set(), {min(left)}
        while front:
            part |= front
            front = {j for i in front for j in left if near[i][j]} - part
        clusters.append(sorted(part))
        left -= part
    largest = max(map(len, clusters), default=0)
    wanted = [np.mean(keys[c], axis=0) for c in clusters if len(c) == largest] or [keys.mean(0)]
    got = found.reduce(0, "cluster")
    assert any(np.allclose(got, w / np.linalg.norm(w), atol=1e-5) for w in wanted)


def test_bad_input_is_one_line():
    with pytest.raises(EvcapError, match="holds no images"):
        Gallery(VisualNameMemory.empty(8, "any"))
    with pytest.raises(EvcapError, match="known: mean, cluster, rerank"):
        gallery(["a"]).reduce(0, "median")
