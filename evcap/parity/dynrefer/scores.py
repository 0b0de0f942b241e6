"""Scores, control words, cleaned captions and the texts of attributes: numbers and texts alone, without the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evcap.datasets.ovad import Attribute
from evcap.evaluation.dense_captioning import average_precisions, match, merge_boxes
from evcap.evaluation.regions import attribute_map, class_accuracy, class_box_ap
from evcap.regions.control_words import caption_phrases, clean_caption, control_words, training_words
from evcap.training.loop import share_by_epoch

if TYPE_CHECKING:
    from evcap.parity.dynrefer.recording import Recording

Compared = dict[str, float | bool]  # the largest difference, or whether all is equal


def compare_scores(recording: Recording) -> dict[str, Compared]:
    """{case: {what: its difference, or whether it is equal}} of the cases that the recording holds."""
    tensors = {"densecap": _dense, "ovad": _attributes, "region_acc": _classes}
    texts = {"control_words": _control_words, "caption_cleaning": _cleaning}
    found = {name: case(recording) for name, case in tensors.items() if recording.below(name)}
    recording.used |= {name for results in found.values() for name in results} | (texts.keys() & recording.meta.keys())
    found |= {name: case(recording.meta) for name, case in texts.items() if name in recording.meta}
    if "learning_rate_5_epochs" in recording.meta["results"]:
        found["schedule"] = _schedule(recording)
    if "attribute_texts" in recording.meta["strings"]:
        found["attribute_texts"] = _attribute_texts(recording.meta["strings"])
    return found


def _dense(recording: Recording) -> Compared:
    matches, meteor = [], []
    for image in dict.fromkeys(name.rsplit(".", 1)[0] for name in recording.below("densecap") if name.count(".") == 2):
        merged, _ = merge_boxes(recording.array(f"{image}.gt_boxes"))
        matches.append(match(recording.array(f"{image}.boxes"), recording.array(f"{image}.scores"), merged))
        meteor.append(recording.array(f"{image}.meteor")[matches[-1].order])
    scores, results = average_precisions(matches, meteor), recording.meta["results"]["densecap"]
    return {
        "densecap.ap": _gap(scores.ap, recording.array("densecap.ap")),
        "densecap.det_ap": _gap(scores.detection_ap, recording.array("densecap.det_ap")),
        "results.densecap": _gap([scores.mean, scores.detection_mean], [results["map"], results["detmap"]]),
        "results.densecap.merged_gt_total": scores.truths == results["merged_gt_total"],
    }


def _attributes(recording: Recording) -> Compared:
    groups, expected = recording.meta["strings"]["ovad_freq_set"], recording.meta["results"]["ovad_map_percent"]
    found = attribute_map(recording.array("ovad.pred"), recording.array("ovad.labels"), groups)
    return {"results.ovad_map_percent": _gap([found[name] for name in expected], list(expected.values()))}


def _classes(recording: Recording) -> Compared:
    image, x, y, width, height = recording.array("region_acc.boxes").T
    logits, labels = recording.array("region_acc.logits"), recording.array("region_acc.labels")
    found = [
        class_accuracy(logits, labels, width * height)["all"],
        class_box_ap(np.stack([x, y, x + width, y + height], 1), image, logits, labels),
    ]
    expected = recording.meta["results"]["region_acc"]
    return {"results.region_acc": _gap(found, [expected["accuracy"], expected["box_ap"]])}


def _schedule(recording: Recording) -> Compared:
    name = "results.learning_rate_5_epochs"
    recording.used.add(name)
    rows = recording.meta["results"]["learning_rate_5_epochs"]  # epoch, step in it, rate
    return {name: max(abs(rows[0][2] * share_by_epoch(epoch, 5) / rate - 1) for epoch, _, rate in rows)}


def _control_words(meta: dict) -> Compared:
    recorded, tags = meta["control_words"], meta["strings"]["tags"]
    tagged = {row["caption"]: row["pos"] for row in recorded["train"]}
    training = []
    for row in recorded["train"]:
        own = [tags[number] for number in (*row["tag_indices_set1"], *row["tag_indices_set2"])]
        words = training_words(row["caption"], own, lambda words, row=row: row["pos"])
        training.append(_as_set(control_words(words)) == set(row["words_before_dropping"]))
    asked = []
    for row in recorded["eval"]:
        phrase = caption_phrases(tagged[row["caption"]])[0] if row["first_word_control"] else None
        found = control_words(row["predicted_tags"], row["user_controls"] or (), phrase)
        asked.append(_as_set(found) == set(row["words_as_set"]))
    nothing = control_words([]) == recorded["all_dropped"] == recorded["each_dropped"]
    return {"control_words.train": all(training), "control_words.eval": all(asked), "control_words.dropped": nothing}


def _cleaning(meta: dict) -> Compared:
    return {"caption_cleaning": all(clean_caption(before) == after for before, after in meta["caption_cleaning"])}


def _attribute_texts(strings: dict) -> Compared:
    texts = [Attribute(row["name"], row["is_has_att"], "").texts for row in strings["attributes"]]
    equal = sum(texts, []) == strings["attribute_texts"] and [len(row) for row in texts] == strings["attribute_text_counts"]
    return {"strings.attribute_texts": equal}


def _as_set(text: str) -> set[str]:
    """The words of a control text, in which none stands twice; their order is not defined."""
    words = text.removesuffix("|").split(",")
    return set(words) if len(set(words)) == len(words) and text.endswith("|") else set()


def _gap(found, recorded) -> float:
    return float(np.abs(np.asarray(found, np.float64) - np.asarray(recorded, np.float64)).max())
