"""Retrieval for real photos in the shipped memory, against brute force and the release's rule written as loops.

Some keys of that memory are equal, for an image may hold several names. Which of them comes first is the index's choice; so
its hits are compared with brute force by their similarities, and the rule is then applied to these hits.
"""

import numpy as np
import pytest
from test_memory import rule_of_the_release, unit

from evcap.memory.memory import VisualNameMemory
from evcap.memory.ranking import image_key

SETTINGS = [(5, 32, 10), (1, 32, 10), (3, 96, 40), (5, 8, 3), (20, 640, 50), (5, 1, 10)]  # hits, keep, names; release, paper


@pytest.fixture(scope="module")
def memory(captioner) -> VisualNameMemory:
    """The shipped one, whatever other tests have assigned."""
    from evcap.config import preset_path

    return VisualNameMemory.open(preset_path("embedded").parent / captioner.preset.assets / "memory")


@pytest.fixture(scope="module")
def features(captioner) -> np.ndarray:
    """Query features (8,32,384) of the example photos."""
    from places import EXAMPLES

    return captioner.query_features(sorted(EXAMPLES.glob("*.jpg"))).numpy()


@pytest.fixture(scope="module")
def cosines(memory, features) -> np.ndarray:
    """(8,32,M) float64, one query after the other; keys as they are stored, rounded to float16."""
    keys = memory.keys.astype(np.float64)
    return np.array([[keys @ query for query in unit(picture).astype(np.float64)] for picture in features])


def without_own(similarities, entries, own, hits):
    """Each query's first `hits` entries that are none of `own`."""
    kept_similarities, kept_entries = [], []
    for row, found in zip(similarities, entries, strict=True):
        pairs = [(s, e) for s, e in zip(row, found, strict=True) if e not in own][:hits]
        kept_similarities.append([s for s, _ in pairs])
        kept_entries.append([e for _, e in pairs])
    return kept_similarities, kept_entries


@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("hits, keep, names", SETTINGS)
def test_retrieval_is_the_rule_of_the_release(memory, features, cosines, hits, keep, names, excluding):
    images = [memory.images[best % len(memory)] for best in cosines.reshape(len(features), -1).argmax(1)]  # found, if allowed
    own = [{i for i, other in enumerate(memory.images) if other == image} if excluding else set() for image in images]
    wanted = hits + max(map(len, own))
    similarities, entries = memory.nearest(unit(features.reshape(-1, features.shape[2])), wanted)  # ties as in the search
    found = memory.search(features, hits, keep, names, images if excluding else None)
    assert len(found) == len(features) == 8
    for photo, rows in enumerate(found):
        part = slice(32 * photo, 32 * photo + 32)
        near, which = without_own(similarities[part].tolist(), entries[part].tolist(), own[photo], hits)
        for query, (row, chosen) in enumerate(zip(near, which, strict=True)):
            allowed = [i for i in range(len(memory)) if i not in own[photo]]
            brute = np.sort(cosines[photo, query, allowed])[: -hits - 1 : -1]
            np.testing.assert_allclose(row, brute, atol=2e-6)  # nothing nearer was missed
            np.testing.assert_allclose(cosines[photo, query, chosen], brute, atol=2e-6)  # and these entries are so near
            assert len(set(chosen)) == hits
        expected = rule_of_the_release(near, which, memory.names, keep, names)
        assert [(hit.name, hit.query) for hit in rows] == [(name, query) for name, _, query in expected]
        assert [hit.similarity for hit in rows] == pytest.approx([similarity for _, similarity, _ in expected], abs=1e-6)


def test_excluding_a_photos_nearest_picture_changes_what_is_found(memory, features, cosines):
    images = [memory.images[best % len(memory)] for best in cosines.reshape(len(features), -1).argmax(1)]
    for free, barred in zip(memory.search(features), memory.search(features, exclude=images), strict=True):
        assert free[0].similarity > barred[0].similarity


@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("neighbours, sharpness, names", [(100, 20.0, 6), (100, 10.0, 6), (1, 20.0, 6), (5, 5.0, 2)])
def test_votes_are_those_of_a_loop(memory, features, neighbours, sharpness, names, excluding):
    single = np.sort(np.unique(memory.keys, axis=0, return_index=True)[1])  # one name a photo: equal keys come in any order
    labels, pictures = ([column[i] for i in single] for column in (memory.names, memory.images))
    keys = memory.keys[single]
    lone = VisualNameMemory.build(keys, labels, labels, pictures, memory.encoder)
    cosines = unit(features.astype(np.float64).mean(1)) @ keys.T.astype(np.float64)
    images = [pictures[best] for best in cosines.argmax(1)]
    found = lone.vote(features, neighbours, sharpness, names, images if excluding else None)
    for photo, (rows, cosine) in enumerate(zip(found, cosines, strict=True)):
        allowed = [i for i, image in enumerate(pictures) if not (excluding and image == images[photo])]
        votes = {}
        for i in sorted(allowed, key=(-cosine).__getitem__)[:neighbours]:
            votes.setdefault(labels[i], []).append(i)
        total = {name: sum(np.exp(sharpness * cosine[i]) for i in entries) for name, entries in votes.items()}
        assert [hit.name for hit in rows] == sorted(total, key=total.get, reverse=True)[:names]
        for hit in rows:
            nearest = votes[hit.name][0]
            assert hit.similarity == pytest.approx(cosine[nearest], abs=2e-6)
            assert hit.query == int((unit(features[photo]) @ keys[nearest].astype(np.float32)).argmax())


def test_one_entry_of_the_very_photo_outvotes_many_of_others(memory, features):
    """What somebody adds is found, however many photos of men the memory holds."""
    edited = VisualNameMemory.build(memory.keys, memory.names, memory.sources, memory.images, memory.encoder)
    edited.add(features[:1].mean(1), ["heirloom"], ["mine"], ["mine.jpg"])
    assert edited.vote(features[:1])[0][0].name == "heirloom"
    assert "heirloom" not in {hit.name for hit in memory.vote(features[:1])[0]}


def test_a_picture_is_known_by_its_id_however_its_file_is_spelled(features):
    """COCO's Karpathy splits and LVIS name one photo in two ways; both leave its own entries out, those of others stay."""
    keys = features.mean(1)
    lvis = [f"train2017/{number:012}.jpg" for number in range(len(keys))]
    names = [f"thing {number}" for number in range(len(keys))]
    memory = VisualNameMemory.build(keys, names, ["lvis"] * len(keys), lvis, "test")
    for spelling in ("COCO_train2014_{:012}.jpg", "{:012}.jpg", "train2017/{:012}.jpg", "val2014/COCO_val2014_{:012}.jpg"):
        found = memory.search(features, exclude=[spelling.format(number) for number in range(len(keys))])
        for number, row in enumerate(found):
            said = {name.name for name in row}
            assert names[number] not in said and len(said) > 1
    assert image_key("dog/1.jpg") != image_key("cat/1.jpg") and image_key("123456789012.jpg") != image_key("x123456789012.jpg")
