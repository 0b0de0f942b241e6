"""What the tower's own classifier sees in training images, for query features to keep: the 1,000 classes of ImageNet.

Distillation (Hinton et al. 2015, arXiv 1503.02531): captions seldom say "pelican", and what captions do not say the Q-Former
would lose. The classes' names come with a photo of each, which join the training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from evcap.config import VisionConfig
from evcap.datasets.named_images import read_named_csv
from evcap.errors import EvcapError
from evcap.model.towers import build_backbone
from evcap.progress import Progress, silent
from evcap.weights.wheels import efficientnet_lite2_classifier, efficientnet_lite2_state

BATCH = 64
SURE = 0.9  # of a photo that is named, in place of the classifier's opinion


class Classes:
    """Photos and names of the classes, and the classifier of a tower as it was before blocks were adapted."""

    def __init__(self, vision: VisionConfig, csv: Path):
        """csv: of named images, one a class, whose file names in alphabetical order are the order of the classes, as those of
        WordNet ids are. Raises EvcapError for another number of classes, or another tower."""
        if vision.kind != "efficientnet-lite2":
            raise EvcapError(f"the tower '{vision.kind}' has no classifier to learn from: set class_weight to 0")
        named = sorted(read_named_csv(csv, csv.stem), key=lambda item: item.path.name)
        self._csv = csv
        self._weight, self._bias = efficientnet_lite2_classifier()
        if len(named) != len(self._bias):
            raise EvcapError(
                f"{csv} names {len(named)} images, the classifier has {len(self._bias)} classes: one of each, please"
            )
        self.names = [item.name for item in named]
        self.photos = [item.path for item in named]
        self._tower = build_backbone(vision)
        self._tower.network.load_state_dict(efficientnet_lite2_state())

    @torch.inference_mode()
    def seen(self, features: np.ndarray, progress: Progress = silent) -> torch.Tensor:
        """Rows of the frozen part of the tower -> probabilities of the classes (N,n) float16."""
        rows = []
        with progress(len(features), "classes") as advance:
            for start in range(0, len(features), BATCH):
                part = torch.from_numpy(features[start : start + BATCH]).float()
                pooled = self._tower.adapted(part).mean(1)
                rows.append((pooled @ self._weight.T + self._bias).softmax(-1).half())
                advance(len(part))
        return torch.cat(rows)

    def of_photos(self, features: Sequence[np.ndarray]) -> torch.Tensor:
        """What is to be learned from the photos (n,n) float16: mostly the class that they are named.

        features: of the photos, plain. Raises EvcapError where the classifier thinks otherwise of most of them.
        """
        right = (self.seen(features).argmax(-1) == torch.arange(len(features))).float().mean().item()
        if right < 0.5:
            raise EvcapError(
                f"{self._csv}: the classifier agrees with {100 * right:.0f} % of the names; the files' names must be in the "
                "order of ImageNet's classes"
            )
        count = len(features)
        return ((1 - SURE) / count + SURE * torch.eye(count)).half()
