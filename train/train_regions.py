"""Training of the region captioner (DynRefer, CVPR 2025, arXiv 2405.16071): fusion of views, heads, projection and adapters.

The spine, with its tower, its Q-Former, its memory and its name fusion, stays as it is. Three things are learned together: the
captions of regions, which tags hold, and which text fits which region. Views are drawn for each step from those that are kept
of a region: its own, some at random, the whole image. Names come from the memory in each step, for the features that they are
found with are learned; an image that is itself in the memory never finds its own entries. Names are renamed together with the
captions, as in train/train.py.

    accelerate launch train/train_regions.py train/configs/embedded-regions.yaml --data DIR
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from evcap.cli.console import command
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import shown, tell
from evcap.config import Preset, RegionConfig, assets_folder, load_preset
from evcap.datasets.coco import read_name_list
from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import cider
from evcap.generators.options import begins_empty, encoder_tensors
from evcap.memory.memory import VisualNameMemory
from evcap.model.build import language_precision_in_training
from evcap.model.fingerprint import encoder_fingerprint
from evcap.regions.control_words import clean_caption, control_words, dropped
from evcap.regions.heads import likeliest_tags
from evcap.regions.model import RegionModel, learns, open_regions, open_spine
from evcap.regions.texts import TextFeatures
from evcap.runtime import half_precision
from evcap.training.loop import Learner, TrainingLoop
from evcap.training.region_data import (
    RegionFile,
    ViewTokens,
    cached_views,
    drawn_ratios,
    drawn_views,
    hashed_ratios,
    read_samples,
)
from evcap.training.region_losses import (
    TAG_WEIGHT,
    TEXT_WEIGHT,
    asymmetric_loss,
    choice_loss,
    class_loss,
    region_text_loss,
)
from evcap.training.region_words import COLOURS, colour_choice, tag_targets, tags_of_step, words_of
from evcap.training.renaming import SPARE, make_renamer, noisy, retold
from evcap.yaml_files import load_yaml

OWN_SUBSTITUTES = Path(__file__).with_name("substitutes.txt")


@dataclass(frozen=True)
class Config:
    """All that a run depends on, beside the data folder."""

    output: str
    files: list[RegionFile]
    validation: list[RegionFile]
    tags: str  # vocabulary, one a line; the file that ships
    classes: str  # names of classes, one a line
    epochs: int
    batch: int  # described regions of a step and process
    learning_rate: float
    preset: str = "embedded"
    start_from: str | None = None  # the spine's tensors and its memory, if not the preset's own
    memory: str | None = None
    regions_from: str | None = None  # tensors that training begins with; without a file they are drawn
    collages: float = 0.2  # share of the photos that stand on a canvas with others
    drawn: int = 2  # views at random that are kept of each region
    ratios: list[float] = field(default_factory=list)  # t of the views instead, always the same ones
    in_classes: int = 12  # regions of classes that join each step
    captioned: int = 0  # of the described regions of a step those whose captions are learned, the dearest part; 0 = all
    predicted_words: float = 0.0  # share of the captions that are asked for with the tags that the model itself finds
    caption_weight: float = 1.0
    tag_weight: float = TAG_WEIGHT
    text_weight: float = TEXT_WEIGHT
    class_weight: float = 0.5
    colour_weight: float = 0.0  # of the choice of a phrase's colour among eleven
    with_names: bool = True
    substitutes: str = ""  # as in train/train.py, and so the next four
    rename: float = 0.5
    wrong_names: float = 0.0
    noise: float = 0.0
    drop_names: float = 0.05
    accumulate: int = 1
    last_rate: float = 0.0
    by_epoch: bool = False  # the release's schedule: full in the first epoch, then a cosine that falls once an epoch
    weight_decay: float = 0.05
    warmup: int = 100
    tags_of_step: int = 192  # that are asked about: those that hold, and others at random
    caption_slots: int = 18
    max_tokens: int = 16
    validate: int = 240
    checkpoint_minutes: float = 5.0
    compile: bool = True
    seed: int = 0
    max_steps: int = 0  # a shorter run, schedule included; 0 = all epochs


class RegionLearner(Learner):
    """The region model with its losses as one forward pass."""

    def __init__(self, model: RegionModel, config: Config, slots: int):
        super().__init__(model)
        self.noise, self.slots, self.captioned = config.noise, slots, config.captioned or config.batch

    def trained_parts(self) -> dict[str, torch.Tensor]:
        return self.model.trained()

    def load(self, given: dict[str, torch.Tensor], where: str) -> None:
        self.model.load(given, where)

    def forward(self, tokens, boxes, told_for, texts, same, tags, holds, known, classes, labels, coloured):
        """tokens (B+c,V,P,C), boxes (B+c,V,4), the last c regions of classes -> dict of losses.

        told_for: Q (n,32,W) -> (names, control words, PackedCaptions) of the first n, whose captions are learned. texts
        (B+c,E): of a text of each region, same (B+c,): its number. tags (T,E), holds and known (B+c,T). classes (k,E), labels
        (c,). coloured: which regions (m,), features (m,11,E) of a phrase of each in every colour, the right one (m,).
        """
        model, device = self.model, tokens.device
        queries = model.queries(tokens, boxes)
        first_of_class = len(queries) - len(labels)
        described = queries[:first_of_class][: self.captioned]
        names, controls, captions = told_for(described.detach().float())
        prompt = model.prompt(noisy(described, self.noise), names, controls, self.slots)
        losses = {"caption": model.language.loss(prompt, captions.to(device))}
        logits = model.tag_head(queries, tags).float().masked_fill(~known, -1e4)  # what is not known costs nothing
        losses["tag"] = asymmetric_loss(logits, holds & known)
        losses["text"] = region_text_loss(model.region_text_head, queries, texts, same)
        losses["class"] = class_loss(model.region_text_head, queries[first_of_class:], classes, labels)
        rows, phrases, right = coloured
        losses["colour"] = choice_loss(model.region_text_head, queries[rows], phrases, right)
        return losses


def check_views(config: Config, views: int, path: Path) -> None:
    """Raises EvcapError for settings that keep other views than the fusion takes, before any is computed."""
    if config.ratios and len(config.ratios) != views:
        raise EvcapError(f"{path}: {len(config.ratios)} ratios, the preset's regions have {views} views")
    if not config.ratios and config.drawn + 2 < views:
        raise EvcapError(f"{path}: {views} views of a region, {config.drawn + 2} are kept: raise `drawn`")


@torch.inference_mode()
def captions_of(learner: RegionLearner, memory: VisualNameMemory | None, views: ViewTokens, rows: range) -> list[str]:
    """Beam-3 captions of regions from all their views, without control words."""
    model, said = learner.model, []
    model.eval()
    decoding = replace(model.config.decoding, beams=3)
    everything = np.arange(views.of.shape[1])
    for start in range(rows.start, rows.stop, 40):
        part = range(start, min(start + 40, rows.stop))
        tokens, boxes = (each.to(model.device) for each in views.take(part, everything[None]))
        with half_precision(model.device):
            queries = model.queries(tokens, boxes)
            names = [[]] * len(part)
            if memory:
                found = memory.retrieve(queries.float().cpu(), model.spine.preset.memory)
                names = [[name.name for name in row] for row in found]
            said += [row[0].text for row in model.captions(queries, names, [control_words([])] * len(part), 1, decoding)]
    model.train()
    return said


def opened_model(config: Config, preset: Preset, device: torch.device) -> tuple[RegionModel, VisualNameMemory | None]:
    """The region model on its spine, as it begins, and the memory that names come from, if any do."""
    trained = config.start_from or encoder_tensors(config.preset, preset)
    spine, language = open_spine(preset, trained, language_precision_in_training(preset, device), device)
    model = open_regions(spine, language, config.regions_from)
    own = assets_folder(config.preset, preset) / "memory"
    without = config.memory is None and begins_empty(preset, preset.generator, own)
    if without or not config.with_names:
        return model, None
    return model, VisualNameMemory.open(config.memory or own, encoder_fingerprint(spine))


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see train/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    """Train the region captioner."""
    config = load_yaml(config_path, Config)
    preset = load_preset(config.preset)
    check_views(config, (preset.regions or RegionConfig()).views, config_path)
    loop = TrainingLoop(config, shown(quiet), tell)
    accelerator, progress = loop.accelerator, loop.progress
    if loop.sharded:
        raise EvcapError("train_regions.py runs alone or with ddp.yaml: its language model is a twin, which cannot be sharded")
    model, memory = opened_model(config, preset, accelerator.device)
    spine = model.spine
    renamer = make_renamer(config, data, OWN_SUBSTITUTES, memory.counts()) if memory else None

    samples = read_samples(config.files, data, config.collages, config.seed)
    held = read_samples(config.validation, data, 0.0, config.seed)[: config.validate]
    described = [number for number, sample in enumerate(samples) if not sample.in_class]
    in_class = [number for number, sample in enumerate(samples) if sample.in_class]
    tags, classes = ([row[0] for row in read_name_list(path)] for path in (config.tags, config.classes))
    if unknown := {samples[number].region.phrases[0] for number in in_class} - set(classes):
        raise EvcapError(f"{config.classes} has no class '{min(unknown)}', which boxes of {config_path} have")
    fixed = np.array(config.ratios)[None]
    ratios = fixed.repeat(len(samples), 0) if config.ratios else drawn_ratios(samples, config.drawn, config.seed)
    views = cached_views(spine, samples, ratios, data, progress, loop.share)
    held_ratios = fixed.repeat(len(held), 0) if config.ratios else hashed_ratios(held, model.config.views)
    held_views = cached_views(spine, held, held_ratios, data, progress, loop.share)
    accelerator.wait_for_everyone()

    words = words_of(samples, progress)
    holds, known = tag_targets(samples, words, tags, classes)
    said = [(sample, clean_caption(phrase)) for sample in samples for phrase in sample.region.phrases]
    choices = [colour_choice(*each) for each in said] if config.colour_weight else []
    texts = sorted({phrase for _, phrase in said}.union(*(choice[1] for choice in choices if choice)))
    place = {text: number for number, text in enumerate(texts)}
    with accelerator.main_process_first():
        read = TextFeatures(model.config, model.text_tower, preset.text_tower, progress)
        embedded, tag_texts, class_texts = (read(each) for each in (texts, tags, classes))
    all_tags = tag_texts.to(accelerator.device)
    labels = {name: number for number, name in enumerate(classes)}

    spine.requires_grad_(False)
    spine.eval()
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name))
    if config.compile:
        model.language.compile()
    learner = RegionLearner(model, config, model.widest_text())
    rule = replace(preset.memory, names=preset.memory.names + (SPARE if config.wrong_names else 0))
    trainer = loop.start(learner, len(described), config.last_rate, config.by_epoch)

    def scores() -> dict[str, float]:
        said = loop.together(len(held), lambda share: captions_of(learner, memory, held_views, share))
        references = {number: list(sample.region.phrases) for number, sample in enumerate(held)}
        return {"cider": cider(dict(enumerate(said)), references)} if accelerator.is_main_process else {}

    for chosen, draws in loop.batches(scores):
        draw = random.Random(draws)
        chosen_rows = [described[number] for number in chosen]
        of_classes = draw.choices(in_class, k=config.in_classes) if in_class else []
        rows = chosen_rows + of_classes
        tokens, boxes = views.take(
            rows, drawn_views(ratios.shape[1], len(rows), model.config.views, np.random.default_rng(draws))
        )

        def told_for(queries, rows=chosen_rows[: learner.captioned], draw=draw):
            some, names = [samples[row] for row in rows], [[] for _ in rows]
            if memory:
                found = memory.retrieve(queries.cpu(), rule, [sample.region.path.name for sample in some])
                names = [[name.name for name in row] for row in found]
            captions = [[clean_caption(phrase) for phrase in sample.region.phrases] for sample in some]
            told = [
                retold(each, said, renamer, config, preset.memory.names, draw)
                for each, said in zip(names, captions, strict=True)
            ]
            packed = model.language.pack([said for _, said in told], config.caption_slots, config.max_tokens)
            kept = [names for names, _ in told]
            joined = kept if model.config.names_as_words else [[]] * len(rows)
            controls = [dropped([*words[row], *more], draw) for row, more in zip(rows, joined, strict=True)]
            if asking := [number for number in range(len(rows)) if draw.random() < config.predicted_words]:
                with torch.no_grad():
                    logits = model.tag_head(queries[asking], all_tags)
                predicted = likeliest_tags(logits, tags, model.config.tag_threshold)
                for number, found in zip(asking, predicted, strict=True):
                    controls[number] = control_words([*joined[number], *found])
            return kept, controls, packed

        said = [clean_caption(draw.choice(samples[row].region.phrases)) for row in rows]
        numbers = torch.tensor([place[text] for text in said])
        choices = [(number, colour_choice(samples[row], said[number])) for number, row in enumerate(rows)]
        choices = [(number, *choice) for number, choice in choices if choice and config.colour_weight]
        in_colours = torch.tensor([[place[text] for text in others] for _, _, others in choices], dtype=torch.long)
        of_colours, right = (torch.tensor([choice[part] for choice in choices], dtype=torch.long) for part in (0, 1))
        coloured = of_colours, embedded[in_colours.reshape(-1, len(COLOURS))], right
        asked = tags_of_step(holds[rows], config.tags_of_step)
        given = (embedded[numbers], numbers, tag_texts[asked], holds[rows][:, asked], known[rows][:, asked], class_texts)
        answers = torch.tensor([labels[samples[row].region.phrases[0]] for row in of_classes], dtype=torch.long)
        given = [tensor.to(accelerator.device) for tensor in (tokens, boxes, *given, answers)]
        coloured = [tensor.to(accelerator.device) for tensor in coloured]
        losses = trainer(*given[:2], told_for, *given[2:], coloured)
        loop.backward(sum(getattr(config, f"{name}_weight") * value for name, value in losses.items()), **losses)


if __name__ == "__main__":
    typer.run(command(main))
