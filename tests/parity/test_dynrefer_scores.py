"""The recorded scores, control words and texts of DynRefer, reproduced; a number or a word that is changed is noticed."""

import copy
import json

import pytest
from places import GOLDEN
from safetensors.numpy import load_file

from evcap.parity.dynrefer.scores import compare_scores


class Recorded:
    """What `compare_scores` reads of a recording."""

    def __init__(self, meta: dict, tensors: dict):
        self.meta, self.tensors, self.array, self.used = meta, tensors, tensors.__getitem__, set()

    def below(self, prefix: str) -> list[str]:
        return [name for name in self.tensors if name.startswith(f"{prefix}.")]


@pytest.fixture
def recorded():
    folder = GOLDEN / "dynrefer_scores"
    return Recorded(json.loads((folder / "meta.json").read_text()), load_file(folder / "tensors.safetensors"))


def passed(result: float | bool) -> bool:
    return result if isinstance(result, bool) else result <= 1e-6


def test_the_recording_is_reproduced(recorded):
    cases = compare_scores(recorded)
    assert list(cases) == ["densecap", "ovad", "region_acc", "control_words", "caption_cleaning", "attribute_texts"]
    results = [result for case in cases.values() for result in case.values()]
    assert len(results) == 11 and all(map(passed, results))


@pytest.mark.parametrize(
    ("place", "value", "seen_in"),
    [
        (("results", "densecap", "map"), 0.3, "results.densecap"),
        (("results", "densecap", "merged_gt_total"), 8, "results.densecap.merged_gt_total"),
        (("results", "ovad_map_percent", "tail"), 33.2, "results.ovad_map_percent"),
        (("results", "region_acc", "box_ap"), 0.6, "results.region_acc"),
        (("control_words", "train", 0, "words_before_dropping"), ["dog"], "control_words.train"),
        (("control_words", "eval", 0, "words_as_set"), ["dog"], "control_words.eval"),
        (("control_words", "all_dropped"), "", "control_words.dropped"),
        (("caption_cleaning", 0, 1), "a dog", "caption_cleaning"),
        (("strings", "attribute_text_counts", 0), 5, "strings.attribute_texts"),
    ],
)
def test_what_is_changed_is_noticed(recorded, place, value, seen_in):
    part = recorded.meta
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    failed = {name for case in compare_scores(recorded).values() for name, result in case.items() if not passed(result)}
    assert failed == {seen_in}


@pytest.mark.parametrize(
    ("tensor", "seen_in"),
    [
        ("densecap.ap", "densecap.ap"),
        ("densecap.det_ap", "densecap.det_ap"),
        ("ovad.pred", "results.ovad_map_percent"),
        ("region_acc.logits", "results.region_acc"),
    ],
)
def test_another_order_is_noticed(recorded, tensor, seen_in):
    tensors = dict(recorded.tensors)
    tensors[tensor] = -copy.deepcopy(tensors[tensor])
    cases = compare_scores(Recorded(recorded.meta, tensors))
    assert {name for case in cases.values() for name, result in case.items() if not passed(result)} == {seen_in}


def test_a_recording_may_hold_a_part_alone(recorded):
    tensors = {name: value for name, value in recorded.tensors.items() if name.startswith("ovad.")}
    meta = {"strings": {"ovad_freq_set": recorded.meta["strings"]["ovad_freq_set"]}, "results": recorded.meta["results"]}
    assert list(compare_scores(Recorded(meta, tensors))) == ["ovad"]
