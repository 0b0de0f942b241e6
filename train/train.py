"""Training of EVCap itself (arXiv 2311.15879, section 3.3): retrieval on, fusion + projection + T_obj learn.

The image tower, the image Q-Former and the language model are frozen (its LoRA may learn on), so Q and the retrieved names
of every picture are computed once. A picture that is itself in the memory never finds its own entries. Two augmentations
make the captions listen to the memory: names are dropped, and names are renamed together with the words of the captions
they stand for (dog -> teapot in both), so that the model learns to say the retrieved name and not the one it would guess.

    accelerate launch train/train.py train/configs/embedded.yaml --data DIR
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from tqdm import tqdm

from evcap.build import build_model, name_tokenizer
from evcap.captioner import EVCap
from evcap.config import load_preset, load_yaml
from evcap.console import DataFolder, NoBars, command
from evcap.datasets import read_lvis_names
from evcap.features import cached_queries
from evcap.loop import TrainingLoop
from evcap.memory import VisualNameMemory
from evcap.metrics import cider
from evcap.predictor import Captioner, encoder_fingerprint
from evcap.renaming import Renamer
from evcap.text import SentenceEmbedder, clean_caption
from evcap.training import read_split


@dataclass(frozen=True)
class Config:
    """All that a run depends on, beside the data folder."""

    output: str
    start_from: str  # trained tensors of pretraining
    memory: str  # folder made by memory/build.py with the same tensors
    sets: list[str]
    substitutes: str  # list of names below --data, one a line; renaming draws from it and from train/substitutes.txt
    epochs: int
    batch: int
    learning_rate: float
    preset: str = "embedded"
    train_lora: bool = False  # the language model's LoRA of pretraining learns on
    accumulate: int = 1
    rename: float = 0.5  # share of pictures whose matched names are renamed
    drop_names: float = 0.05  # share of retrieved names left out; half as many pictures lose all of them
    weight_decay: float = 0.05
    warmup: int = 100
    text_slots: int = 80
    validate: int = 240
    checkpoint_minutes: float = 5.0
    compile: bool = True
    seed: int = 0
    max_steps: int = 0  # a shorter run, schedule included; 0 = all epochs
    without_names: list[str] = field(default_factory=list)  # pictures of which a caption says one of these are left out


class Trainer(nn.Module):
    """The caption loss as a forward pass, the form accelerate wraps."""

    def __init__(self, model: EVCap, tail_slots: int):
        super().__init__()
        self.model = model
        self.tail_slots = tail_slots

    def forward(self, queries, name_ids, name_mask, names, captions):
        return self.model.loss(queries, name_ids, name_mask, names, captions, self.tail_slots)


def retrieved_names(memory: VisualNameMemory, queries, records, rule, quiet: bool) -> list[list[str]]:
    """Names of each picture, its own memory entries left out."""
    rows = []
    for start in tqdm(range(0, len(records), 256), desc="retrieval", unit="batch", disable=quiet):
        own = [r.path.name for r in records[start : start + 256]]
        found = memory.search(queries[start : start + 256].astype("float32"), rule.hits, rule.keep, rule.names, exclude=own)
        rows += [[n.name for n in row] for row in found]
    return rows


def validate(captioner: Captioner, queries, records) -> float:
    """CIDEr of beam-3 captions with the memory."""
    captioner.model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        captions = captioner.caption_features(torch.from_numpy(queries).float(), beams=3, max_length=24, batch_size=40)
    captioner.model.train()
    predictions = {i: c.caption for i, c in enumerate(captions)}
    return cider(predictions, {i: records[i].captions for i in predictions})


def trainable(name: str, config: Config) -> bool:
    if name.startswith("fusion.embeddings."):
        return False
    return name.startswith(("fusion", "projection")) or (config.train_lora and name.endswith((".down", ".up")))


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see train/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    config = load_yaml(config_path, Config)
    loop = TrainingLoop(config, quiet)
    accelerator, quiet = loop.accelerator, loop.quiet
    preset = load_preset(config.preset)
    model = build_model(preset, config.start_from, "bfloat16")
    encoder = encoder_fingerprint(model)
    memory = VisualNameMemory.open(config.memory, encoder)
    captioner = Captioner(model, memory)
    lists = (data / config.substitutes, Path(__file__).with_name("substitutes.txt"))
    substitutes = [row[0] for path in lists for row in read_lvis_names(path)]
    renamer = Renamer(memory.counts(), substitutes, SentenceEmbedder())
    records = read_split(data, config.sets, "train", config.without_names)
    val_records = read_split(data, config.sets, "val")[: config.validate]
    with accelerator.main_process_first():
        views = [cached_queries(model, records, data, encoder, mirrored, quiet) for mirrored in (False, True)]
        val_queries = cached_queries(model, val_records, data, encoder, False, quiet)
    view_names = [retrieved_names(memory, view, records, preset.memory, quiet) for view in views]
    captions = [[clean_caption(c) for c in r.captions] for r in records]
    tokenize = name_tokenizer()

    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable(name, config))
    if config.compile:
        model.language.compile()
    trainer = loop.start(Trainer(model, model.language.widest_tail()), model, len(records))
    for rows, draws in loop.batches(lambda: {"cider": validate(captioner, val_queries, val_records)}):
        draw = random.Random(draws)
        queries, names, texts = [], [], []
        for row in rows:
            view = draw.random() < 0.5
            queries.append(torch.from_numpy(views[view][row]))
            kept = renamer.drop(view_names[view][row], config.drop_names, draw)
            said = draw.sample(captions[row], len(captions[row]))
            table = renamer.table(kept, said, draw) if draw.random() < config.rename else {}
            names.append([table.get(name, name) for name in kept])
            texts.append([renamer.replace(caption, table) for caption in said])
        packed = model.language.pack(texts, config.text_slots)
        loop.backward(trainer(torch.stack(queries).float(), *tokenize(names), names, packed))


if __name__ == "__main__":
    typer.run(command(main))
