"""The phrase model against least squares and a loop over captions, its file, its recipe, and what the shipped one knows."""

import json
import math
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from places import EXAMPLES
from tiny_run import here, world

from evcap.captioner import Captioner
from evcap.errors import EvcapError
from evcap.language.phrases import EIGHT_BITS, PhraseModel
from evcap.weights.wheels import write_safetensors

WORDS = ["a", "dog", "cat", "runs", "sits", "on", "grass", "sofa"]
ALL = {"size": 10**6, "least": 3, "longest": 4, "ridge": 0.003}


def windows(text: str, longest: int) -> set[str]:
    words = re.sub(r"[^a-z ]", "", text.lower()).split()
    return {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, min(i + longest, len(words)) + 1)}


def pictures(count: int, width: int, seed: int):
    """Two views of keys (count,width) and three captions each."""
    draw = random.Random(seed)
    captions = [[" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(3)] for _ in range(count)]
    torch.manual_seed(seed)
    return [torch.randn(count, width), torch.randn(count, width)], captions


def test_weights_are_those_of_least_squares():
    """Ridge regression written as plain least squares with one more row for each coordinate of the key."""
    views, captions = pictures(60, 5, seed=0)
    ridge = 0.2
    model = PhraseModel.fit(views, captions, "any", size=10**6, least=4, longest=3, ridge=ridge)
    said = [Counter(p for caption in row for p in windows(caption, 3)) for row in captions]
    frequency = Counter(p for row in said for p in row)
    assert model.phrases == sorted(p for p, n in frequency.items() if n >= 4) and len(model.phrases) > 20
    keys = torch.cat(views).double().numpy()
    keys -= keys.mean(0)
    shares = np.array([[row[p] / 3 for p in model.phrases] for row in said] * 2)
    extra = math.sqrt(ridge * len(keys) * keys.var(0).mean()) * np.eye(5)
    weights = np.linalg.lstsq(np.vstack([keys, extra]), np.vstack([shares - shares.mean(0), np.zeros((5, shares.shape[1]))]))[0]
    weights = weights.T * [[math.log(60 / frequency[p])] for p in model.phrases]
    weights /= np.sqrt((weights**2).mean())
    np.testing.assert_allclose(model._weights, weights, rtol=2**-4, atol=0.01)  # 8 bits: 3 of the mantissa


def test_phrases_that_vary_most_are_kept():
    views, captions = pictures(60, 5, seed=1)
    everything = PhraseModel.fit(views, captions, "any", **ALL)
    few = PhraseModel.fit(views, captions, "any", **ALL | {"size": 12})
    keys = torch.cat(views) - everything.center
    spread = (keys @ everything._weights.T).square().sum(0)
    least_kept = min(spread[everything.phrases.index(p)] for p in few.phrases)
    dropped = [spread[i] for i, p in enumerate(everything.phrases) if p not in few.phrases]
    assert len(few.phrases) == 12 and dropped and max(dropped) <= 1.05 * least_kept  # both after rounding to 8 bits


@given(
    texts=st.lists(st.lists(st.sampled_from([*WORDS, "Dog,", "zebra", "."]), max_size=9).map(" ".join), max_size=4),
    seed=st.integers(0, 9),
)
def test_fit_is_the_sum_over_phrases(texts, seed):
    model = PhraseModel.fit(*pictures(40, 6, seed), "any", **ALL | {"size": 50})
    torch.manual_seed(seed)
    queries = torch.randn(2, 3, 6)
    for picture, found in zip(queries, model(queries, [texts, texts[:1]]), strict=True):
        mean = picture.mean(0)
        weights = dict(zip(model.phrases, (model._weights @ (mean / mean.norm() - model.center)).tolist(), strict=True))
        for text, value in zip(texts, found.tolist(), strict=False):
            length = len(text.replace(".", "").split())
            expected = sum(weights.get(p, 0.0) for p in windows(text, 4)) / math.sqrt(max(length, 1))
            assert value == pytest.approx(expected, abs=1e-4)
    assert [len(row) for row in model(queries, [texts, texts[:1]])] == [len(texts), len(texts[:1])]


def test_a_file_gives_back_the_same_model(tmp_path):
    views, captions = pictures(40, 6, seed=0)
    model = PhraseModel.fit(views, captions, "coder", **ALL)
    model.save(tmp_path / "p.safetensors")
    opened = PhraseModel.open(tmp_path / "p.safetensors", "coder")
    queries = torch.randn(2, 3, 6)
    for mine, theirs in zip(model(queries, captions[:2]), opened(queries, captions[:2]), strict=True):
        assert torch.equal(mine, theirs) and mine.any()


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(EvcapError, match="does not exist"):
        PhraseModel.open(path, "coder")
    model = PhraseModel.fit(*pictures(40, 6, seed=0), "coder", **ALL)
    model.save(path)
    with pytest.raises(EvcapError, match="another encoder"):
        PhraseModel.open(path, "other")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(EvcapError, match="damaged"):
        PhraseModel.open(path, "coder")


GOOD = {"weights": torch.ones(2, 3).to(EIGHT_BITS), "center": torch.ones(3)}
NOT_A_NUMBER = torch.tensor([[1.0, 2.0, torch.nan]] * 2).to(EIGHT_BITS)


@pytest.mark.parametrize("phrases", [None, "[", "[" * 10**5, "3", '"ab"', '["a"]', "[1, 2]", '["a", "a"]', '{"a": 1, "b": 2}'])
def test_metadata_that_lies(tmp_path, phrases):
    write_safetensors(GOOD, tmp_path / "p.safetensors", {"encoder": "coder"} | ({"phrases": phrases} if phrases else {}))
    with pytest.raises(EvcapError, match="no phrase model"):
        PhraseModel.open(tmp_path / "p.safetensors", "coder")


@pytest.mark.parametrize(
    "change",
    [
        {"weights": torch.ones(2, 3)},
        {"weights": torch.ones(2, 4).to(EIGHT_BITS)},
        {"weights": torch.ones(2).to(EIGHT_BITS), "center": torch.tensor(0.0)},
        {"weights": NOT_A_NUMBER},
        {"center": torch.ones(3).double()},
        {"center": torch.tensor([1.0, 2.0, torch.inf])},
        {"center": torch.ones(1, 3)},
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change):
    path, metadata = tmp_path / "p.safetensors", {"phrases": json.dumps(["a", "b"]), "encoder": "coder"}
    write_safetensors(GOOD, path, metadata)
    assert PhraseModel.open(path, "coder").phrases == ["a", "b"]
    write_safetensors(GOOD | change, path, metadata)
    with pytest.raises(EvcapError, match="no phrase model"):
        PhraseModel.open(path, "coder")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"least": 6}, "no phrase is"), ({"size": 0}, "at least 1"), ({"longest": -1}, "at least 1"), ({"ridge": 0.0}, "ridge")],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(EvcapError, match=message):
        PhraseModel.fit(*pictures(5, 6, seed=0), "coder", **ALL | settings)


def test_pictures_that_teach_nothing():
    views, captions = pictures(20, 6, seed=0)
    for keys, texts in ((views, captions[:1] * 20), ([torch.ones(20, 6)] * 2, captions)):
        with pytest.raises(EvcapError, match="nothing to learn"):
            PhraseModel.fit(keys, texts, "coder", **ALL)


def test_the_recipe_and_a_preset_that_uses_it(tmp_path):
    """train/phrases.py through its command; a preset whose assets lack its file says so."""
    config = {"output": str(tmp_path / "assets" / "phrases.safetensors"), "trained": str(world() / "start.safetensors")}
    config |= {"sets": ["squares"], "preset": str(world() / "preset.yaml"), "least": 2}
    (tmp_path / "phrases.yaml").write_text(yaml.safe_dump(config))
    assert "from 16 images" in here("phrases", tmp_path / "phrases.yaml")

    preset = yaml.safe_load((world() / "preset.yaml").read_text()) | {"assets": "assets"}
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(preset))
    for name in ("start.safetensors", "memory"):
        (tmp_path / "assets" / name.replace("start", "trained")).symlink_to(world() / name)
    captioner = Captioner.load(tmp_path / "preset.yaml")
    assert {"a red square", "the blue square", "green"} <= set(captioner.phrases.phrases)
    assert Captioner.load(tmp_path / "preset.yaml", trained=world() / "start.safetensors").phrases is None
    (tmp_path / "assets" / "phrases.safetensors").unlink()
    with pytest.raises(EvcapError, match="phrases.safetensors does not exist"):
        Captioner.load(tmp_path / "preset.yaml")


def test_the_shipped_model_knows_what_photos_it_sees(captioner):
    """Wording that people used of an example photo fits it better than what they said of the other ones, on the whole."""
    photos = json.loads((EXAMPLES / "captions.json").read_text())
    paths = [EXAMPLES / image["file_name"] for image in photos["images"]]
    own = [[a["caption"] for a in photos["annotations"] if a["image_id"] == image["id"]] for image in photos["images"]]
    everything = [text for row in own for text in row]
    fits = captioner.phrases(captioner.query_features(paths), [everything] * len(paths))
    means = torch.stack([row.view(len(own), -1).mean(1) for row in fits])  # (photo, whose captions)
    ranks = [(row > row[i]).sum().item() for i, row in enumerate(means)]
    assert sum(ranks) / len(ranks) < 0.5 * (len(paths) - 1) / 2
