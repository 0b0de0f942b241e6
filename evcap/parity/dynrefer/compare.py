"""All cases of a recording, those that it holds: what differs how much, what is not compared."""

from __future__ import annotations

from pathlib import Path

from evcap.parity.dynrefer import captions, chain, features, heads, views
from evcap.parity.dynrefer.model import RegionParts, check_constants, groups
from evcap.parity.dynrefer.recording import TOLERANCE, Recording, passed
from evcap.parity.dynrefer.scores import compare_scores

VIEWS = {
    "boxes": views.boxes,
    "boxes_outside": views.boxes_outside,
    "region": views.region,
    "hash": views.hashes,
    "views": views.crops,
}
PARTS = {
    "text": features.text,
    "roi": features.roi,
    "align": features.align,
    "visual": features.visual,
    "tag": heads.tag,
    "asl": heads.asl,
    "rtc": heads.rtc,
    "llm_t5": captions.llm_t5,
    "llm_vicuna": captions.llm_vicuna,
    "train": chain.train,
    "eval": chain.evaluation,
}


def compare_regions(folder: Path) -> dict:
    """The object that is printed for a recording of DynRefer.

    For each case the largest difference of every tensor, or, where there are no fractions, whether it is equal; and what is
    recorded and not compared. Every step is fed with what the recording gave it, but for `train` and `eval`, which run from the
    crops on.
    """
    recording = Recording(folder)
    check_constants(recording.meta)
    model = RegionParts(recording)
    cases = {}
    for name, case in (VIEWS | PARTS).items():
        if recording.holds(name):
            outputs = case(recording) if name in VIEWS else case(recording, model)
            cases[name] = recording.compare(outputs)
    cases |= compare_scores(recording)
    if recording.holds("trainable_groups"):
        cases["groups"] = groups(recording)
    results = {name: result for case in cases.values() for name, result in case.items()}
    failed = [name for name, result in results.items() if not passed(name, result)]
    return {
        "cases": cases,
        "compared": len(results),
        "failed": failed,
        "not_covered": recording.unused(),
        "tolerance": TOLERANCE,
        "passed": bool(results) and not failed,
    }
