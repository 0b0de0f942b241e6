"""From which score on something counts as found: measured for each preset, as its towers give scores of their own."""

from __future__ import annotations

from evcap.config import Preset, RetrievalConfig
from evcap.errors import EvcapError


def calibrated(preset: Preset) -> RetrievalConfig:
    """The preset's thresholds. Raises EvcapError, with the command that measures them, if it has none."""
    if preset.retrieval is None:
        raise EvcapError(
            f"preset '{preset.name}' has no thresholds for big images: run `python eval/calibrate_scenes.py CONFIG --data "
            "DIR` with this preset in CONFIG (as in eval/configs/scenes-train.yaml), and add what it prints to the preset"
        )
    return preset.retrieval
