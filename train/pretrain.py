"""Pretraining: the image Q-Former learns on patch tokens, BLIP-2 style (arXiv 2301.12597, section 3).

Three losses, each with its weight in the config: image-text contrast against a frozen sentence embedder; words, so that
some query of an image lies close to each word its captions say, and so does the mean query, of which memory keys are
made; and captioning through the frozen language model with a LoRA. What the frozen part of the tower gives is computed once
per image (and once mirrored) and cached; blocks that the preset adapts learn along where the config gives them a rate.

    accelerate launch train/pretrain.py train/configs/embedded-contrast.yaml --data DIR
    accelerate launch train/pretrain.py train/configs/embedded-caption.yaml --data DIR
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

from evcap.cli.console import command
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import shown, tell
from evcap.config import load_preset
from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import cider
from evcap.language.sentences import cached_sentences, clean_caption
from evcap.language.similarity import TextTower, nearest_query
from evcap.model.build import build_model, language_precision_in_training
from evcap.model.evcap import EVCap, adapted_parts
from evcap.runtime import half_precision
from evcap.training.classes import Classes
from evcap.training.features import cached_features
from evcap.training.loop import Learner, TrainingLoop
from evcap.training.pretraining_losses import class_loss, info_nce, similarity_penalty, word_loss, word_targets
from evcap.training.run_folder import read_split
from evcap.yaml_files import load_yaml


@dataclass(frozen=True)
class Config:
    """All that a run depends on, beside the data folder."""

    output: str
    sets: list[str]  # folders below --data with captions_train.json, captions_val.json, images/
    epochs: int
    batch: int  # images per step and process
    learning_rate: float
    preset: str = "embedded"
    start_from: str | None = None  # trained tensors of an earlier run
    tower_rate: float = 0.0  # learning rate of the tower's adapted blocks; 0: they stay as they are
    class_weight: float = 0.0
    classes: str = ""  # CSV below --data with a photo of each class of the tower's classifier, see evcap/training/classes.py
    class_photos: int = 8  # that many of them join each forward pass
    zoom: float = 0.0  # share of the images of which a part is seen, 0.7 to 1 of each side; needs adapted blocks
    accumulate: int = 1
    contrast_weight: float = 1.0
    word_weight: float = 1.0
    caption_weight: float = 1.0
    weight_decay: float = 0.05
    warmup: int = 100
    text_slots: int = 80  # caption tokens per image and step, all its captions together
    extra_texts: int = 512  # captions of other images that join the contrast
    validate: int = 240  # images of the first set's val split; 0 = none
    checkpoint_minutes: float = 5.0
    compile: bool = True
    seed: int = 0
    max_steps: int = 0  # a shorter run, schedule included; 0 = all epochs
    without_names: list[str] = field(default_factory=list)  # images of which a caption says one of these are left out


class Pretrainer(Learner):
    """EVCap with the losses of pretraining as one forward pass."""

    def forward(self, features, texts, extra_texts, words, targets, names, seen, captions):
        """features (B+c,...), texts (B,n,384), extra_texts (m,384), words (w,384), targets (B,w), names (k,384), seen (B+c,k)
        -> dict of losses.

        features: of the frozen part of the tower; the last c are photos of classes, without captions. names, seen: of the
        classes, and their probabilities; k is 0 where they are not learned. captions: PackedCaptions, or None when captioning
        is not trained.
        """
        queries = self.model.query_features(self.model.backbone.adapted(features))
        own, count = texts.shape[:2]
        parts = [texts.flatten(0, 1), extra_texts, words, names]
        texts = self.model.text_projection(torch.cat(parts))
        with torch.autocast(features.device.type, enabled=False):
            texts = nn.functional.normalize(texts.float(), dim=-1)
            texts, words, names = texts.split([len(texts) - len(words) - len(names), len(words), len(names)])
            singles = nn.functional.normalize(queries.float(), dim=-1)
            mean = nn.functional.normalize(queries.float().mean(1), dim=-1)
            losses = {
                "contrast": info_nce(nearest_query(queries[:own], texts), count),
                "word": word_loss(singles[:own], mean[:own], words, targets) + similarity_penalty(singles[:own]),
            }
            if len(names):
                losses["class"] = class_loss(singles, mean, names, seen)
        queries = queries[:own]
        if captions is not None:
            language = self.model.language
            prompt = language.prompt(self.model.projection(queries), [[]] * len(queries), self.tail_slots)
            losses["caption"] = language.loss(prompt, captions)
        return losses

    tail_slots = 0


def parts_of(maps: torch.Tensor, least: float = 0.7) -> torch.Tensor:
    """A part of each map (B,C,h,w), drawn at random, `least` to 1 of each side, at the size of the whole (bilinear)."""
    sides = torch.empty(len(maps), 2).uniform_(least, 1)
    centre = (2 * torch.rand(len(maps), 2) - 1) * (1 - sides)  # the map reaches from -1 to 1
    matrix = torch.stack([torch.diag(side) for side in sides])
    grid = nn.functional.affine_grid(torch.cat([matrix, centre[:, :, None]], 2), list(maps.shape), align_corners=False)
    return nn.functional.grid_sample(maps, grid, align_corners=False, padding_mode="border")


@torch.inference_mode()
def seen(model: EVCap, rows, captioning: bool) -> list[tuple[torch.Tensor, str]]:
    """Q (32,W) of each row of features and, once captioning is trained, a beam-3 caption from Q alone."""
    model.eval()
    decoding = dataclasses.replace(model.preset.decoding, beams=3, max_length=24)
    found, device = [], model.device
    for start in range(0, len(rows), 40):
        features = torch.from_numpy(rows[start : start + 40]).float().to(device)
        queries = model.query_features(model.backbone.adapted(features))
        captions = [""] * len(queries)
        if captioning:
            with half_precision(device):
                prompt = model.language.prompt(model.projection(queries), [[]] * len(queries))
                captions = [row[0].text for row in model.language.decode(prompt, 1, decoding)]
        found += zip(queries.cpu(), captions, strict=True)
    model.train()
    return found


def text_recall(model: EVCap, queries: torch.Tensor, captions: list[list[str]], k: int = 5) -> float:
    """Percent of captions whose own image is among the k most similar (best query), over the given images."""
    similarity = nearest_query(queries.cpu(), TextTower(model.text_projection)([c for row in captions for c in row]))
    owner = torch.tensor([i for i, row in enumerate(captions) for _ in row])
    return 100 * (similarity.topk(min(k, len(similarity)), dim=0).indices == owner).any(0).float().mean().item()


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see train/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    """Pretrain the image Q-Former of a preset."""
    config = load_yaml(config_path, Config)
    loop = TrainingLoop(config, shown(quiet), tell)
    accelerator, progress = loop.accelerator, loop.progress
    preset = load_preset(config.preset)
    adapts = preset.vision.adapted_from is not None
    if (config.tower_rate or config.zoom or config.class_weight) and not adapts:
        raise EvcapError(
            f"{config_path}: tower_rate, zoom and class_weight need a preset with vision.adapted_from, '{preset.name}' has none"
        )
    precision = language_precision_in_training(preset, accelerator.device)
    model = build_model(preset, config.start_from, precision, accelerator.device, sharded=loop.sharded)
    records = read_split(data, config.sets, "train", config.without_names)
    val_records = read_split(data, config.sets, "val")[: config.validate]
    paths, val_paths = ([r.path for r in some] for some in (records, val_records))
    classes = Classes(preset.vision, data / config.classes) if config.class_weight else None
    views, photo_views = (
        [cached_features(model, some, data, flip, progress, loop.share) for flip in (False, True)]
        for some in (paths, classes.photos if classes else [])
    )
    val_rows = cached_features(model, val_paths, data, False, progress, loop.share)
    accelerator.wait_for_everyone()
    seen_classes = [classes.seen(view, progress) for view in views] if classes else []
    photo_classes = classes.of_photos(photo_views[0]) if classes else torch.zeros(0, 0)
    captions = [[clean_caption(c) for c in r.captions] for r in records]
    per_picture = min(map(len, captions))
    words, targets = word_targets(captions)
    with accelerator.main_process_first():
        embedded = cached_sentences([c for row in captions for c in row[:per_picture]], progress)
        word_texts = cached_sentences(words, progress)
        class_texts = cached_sentences(classes.names if classes else [], progress)
    embedded = embedded.view(len(records), per_picture, -1)

    model.train()
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        pretrained_here = name.startswith(("patch_norm", "image_qformer", "text_projection"))
        for_captions = name.startswith("projection") or name.endswith((".down", ".up"))
        parameter.requires_grad_(pretrained_here or (for_captions and config.caption_weight > 0))
    for part in adapted_parts(model).values():
        part.requires_grad_(config.tower_rate > 0)
    if config.compile and config.caption_weight:
        model.language.compile()
    trainer = Pretrainer(model)
    vectors = torch.zeros(1, 1, model.preset.language.hidden, device=accelerator.device)
    trainer.tail_slots = len(model.language.prompt(vectors, [[]]).mask[0]) - 2
    trainer = loop.start(trainer, len(records))

    def scores() -> dict[str, float]:
        """Text-to-image recall@5 and, once captioning is trained, CIDEr."""
        captioning = config.caption_weight > 0
        found = loop.together(len(val_records), lambda share: seen(model, val_rows[share.start : share.stop], captioning))
        if not accelerator.is_main_process:
            return {}
        references = [record.captions for record in val_records]
        values = {"recall": text_recall(model, torch.stack([queries for queries, _ in found]), references)}
        if captioning:
            values["cider"] = cider({i: text for i, (_, text) in enumerate(found)}, dict(enumerate(references)))
        return values

    for rows, _ in loop.batches(scores):
        coins = (torch.rand(len(rows)) < 0.5).int().tolist()
        features = [views[coin][row] for coin, row in zip(coins, rows, strict=True)]
        told = torch.zeros(len(rows), 0)
        if classes:
            photos = torch.randint(len(photo_classes), (config.class_photos,)).tolist()
            features += [photo_views[torch.rand(1).item() < 0.5][photo] for photo in photos]
            told = [seen_classes[coin][row] for coin, row in zip(coins, rows, strict=True)]
            told = torch.stack([*told, *photo_classes[photos]]).float()
        features = torch.from_numpy(np.stack(features)).float()
        zoomed = torch.rand(len(features)) < config.zoom
        if zoomed.any():
            features[zoomed] = parts_of(features[zoomed])
        packed = None
        if config.caption_weight:
            shuffled = [[captions[r][i] for i in torch.randperm(len(captions[r]))] for r in rows]
            packed = model.language.pack(shuffled, config.text_slots).to(accelerator.device)
        others = torch.randint(len(records), (config.extra_texts,))
        others = others[~torch.isin(others, torch.tensor(rows))]
        extra = embedded[others, torch.randint(per_picture, (len(others),))]
        tensors = (features, embedded[rows], extra, word_texts, targets[rows].float(), class_texts, told)
        losses = trainer(*(t.to(accelerator.device) for t in tensors), packed)
        loop.backward(sum(getattr(config, f"{name}_weight") * value for name, value in losses.items()), **losses)


if __name__ == "__main__":
    typer.run(command(main))
