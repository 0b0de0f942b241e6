"""Training of EVCap itself (arXiv 2311.15879, section 3.3): retrieval on, fusion + projection + T_obj learn.

The image tower, the image Q-Former and the language model are frozen (its LoRA may learn on), so Q and the retrieved names
of every image are computed once and kept. An image that is itself in the memory never finds its own entries. Augmentations
make the captions listen to the memory, as far as it is right: names are dropped; names are renamed together with the words of
the captions they stand for (dog -> teapot in both), so that the model learns to say the retrieved name and not its guess; and
some images are left with wrong names alone, for those of images that the Q-Former has seen are right more often than others'.

`release: true` trains what the EVCap release trains: projection, T_obj and the query tokens of the image Q-Former, while the
fusion stays as it was drawn. Q then changes with every step, so tower, Q-Former and retrieval run in each.

    accelerate launch train/train.py train/configs/embedded.yaml --data DIR
    accelerate launch --config_file train/configs/accelerate/ddp.yaml train/train.py CONFIG --data DIR
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from evcap.captioner import Captioner
from evcap.cli.console import command, complain
from evcap.cli.options import DataFolder, NoBars
from evcap.cli.progress import shown, tell
from evcap.config import load_preset
from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import cider
from evcap.language.sentences import clean_caption
from evcap.memory.memory import VisualNameMemory
from evcap.model.build import build_model, language_precision_in_training
from evcap.model.evcap import EVCap
from evcap.model.fingerprint import encoder_fingerprint
from evcap.model.name_fusion import name_tokenizer
from evcap.runtime import full_precision, half_precision
from evcap.training.features import cached_names, cached_queries
from evcap.training.loop import Learner, TrainingLoop
from evcap.training.renaming import SPARE, make_renamer, noisy, retold
from evcap.training.run_folder import read_split
from evcap.yaml_files import load_yaml

OWN_SUBSTITUTES = Path(__file__).with_name("substitutes.txt")


@dataclass(frozen=True)
class Config:
    """All that a run depends on, beside the data folder."""

    output: str
    start_from: str  # trained tensors of pretraining, or what data/convert_weights.py start wrote
    memory: str  # folder made by memory/build.py with the same tensors
    sets: list[str]
    epochs: int
    batch: int
    learning_rate: float
    preset: str = "embedded"
    release: bool = False  # train what the release trains
    train_lora: bool = False  # the language model's LoRA of pretraining learns on
    accumulate: int = 1
    mirror: bool = True  # half of the images are seen mirrored
    substitutes: str = ""  # list of names below --data, one a line; renaming draws from it and from train/substitutes.txt
    rename: float = 0.5  # share of images whose matched names are renamed
    wrong_names: float = 0.0  # share of images that lose all names which their captions say; the next ones take their places
    noise: float = 0.0  # of Q, normal: up to this many standard deviations of Q, drawn for each image
    drop_names: float = 0.05  # share of retrieved names left out; half as many images lose all of them
    last_rate: float = 0.0  # share of the learning rate that is left at the end
    weight_decay: float = 0.05
    warmup: int = 100
    text_slots: int = 80
    max_tokens: int = 32  # of one caption
    validate: int = 240
    checkpoint_minutes: float = 5.0
    compile: bool = True
    gradient_checkpointing: bool = False  # the language model's layers are run again for the backward pass: less memory
    seed: int = 0
    max_steps: int = 0  # a shorter run, schedule included; 0 = all epochs
    without_names: list[str] = field(default_factory=list)  # images of which a caption says one of these are left out


class Trainer(Learner):
    """From Q (B,32,W), or patch tokens (B,P,C) in release mode, to the caption loss as one forward pass."""

    def __init__(self, model: EVCap, from_patches: bool, tail_slots: int, noise: float):
        super().__init__(model)
        self.from_patches, self.tail_slots, self.noise = from_patches, tail_slots, noise
        self._tokenize = name_tokenizer()

    def forward(self, given, texts_for):
        """texts_for: Q -> (names, PackedCaptions) of these images."""
        queries = self._queries(given) if self.from_patches else given
        names, captions = texts_for(queries.detach())
        retrieved = self._tokenize(names).to(given.device)
        return self.model.loss(noisy(queries, self.noise), retrieved, captions.to(given.device), self.tail_slots)

    def _queries(self, patches: torch.Tensor) -> torch.Tensor:
        with full_precision(patches.device):  # as they are when somebody captions
            return self.model.query_features(patches)


def captions_of(captioner: Captioner, config: Config, queries: torch.Tensor) -> list[str]:
    """Beam-3 captions with the memory, from Q (N,32,W) float32."""
    captioner.model.eval()
    with half_precision(captioner.device):
        captions = captioner.caption_features(queries, beams=3, max_length=24, batch_size=40)
    to_training(captioner.model, config)
    return [caption.caption for caption in captions]


def to_training(model: EVCap, config: Config) -> None:
    """Dropout where something learns; the tower never trains, nor, in release mode, its Q-Former and the fusion's layers."""
    model.train()
    for frozen in (model.backbone, model.image_qformer, model.fusion) if config.release else (model.backbone,):
        frozen.eval()


def trainable(name: str, config: Config) -> bool:
    if config.release:
        return name.startswith("projection") or name in ("image_qformer.queries", "fusion.qformer.queries")
    if name.startswith("fusion.embeddings."):
        return False
    return name.startswith(("fusion", "projection")) or (config.train_lora and name.endswith((".down", ".up")))


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see train/configs/.")],
    data: DataFolder,
    quiet: NoBars = False,
) -> None:
    """Train EVCap: the name fusion and the projection, with retrieval on."""
    config = load_yaml(config_path, Config)
    loop = TrainingLoop(config, shown(quiet), tell)
    accelerator, progress = loop.accelerator, loop.progress
    preset = load_preset(config.preset)
    precision = language_precision_in_training(preset, accelerator.device)
    if config.release and loop.sharded:
        raise EvcapError("release: true runs the Q-Former in each step, in float32: use ddp.yaml, not FSDP or ZeRO")
    model = build_model(preset, config.start_from, precision, accelerator.device, sharded=loop.sharded)
    encoder = encoder_fingerprint(model)
    memory = VisualNameMemory.open(config.memory, encoder)
    captioner = Captioner(model, memory)
    if config.release and accelerator.is_main_process:
        complain("release: true leaves out nothing that is retrieved: images that are in the memory find their own entries")
    renamer = make_renamer(config, data, OWN_SUBSTITUTES, memory.counts())
    records = read_split(data, config.sets, "train", config.without_names)
    val_records = read_split(data, config.sets, "val")[: config.validate] if config.validate else []
    captions = [[clean_caption(c) for c in r.captions] for r in records]
    flips = (False, True) if config.mirror else (False,)
    paths, val_paths = ([r.path for r in some] for some in (records, val_records))
    views = [cached_queries(model, paths, data, encoder, flip, progress, loop.share) for flip in flips if not config.release]
    if val_paths and not config.release:
        val_queries = cached_queries(model, val_paths, data, encoder, False, progress, loop.share)
    accelerator.wait_for_everyone()
    files, told = [path.name for path in paths], f"{config.sets} {config.without_names}"
    rule = preset.memory
    longer = replace(rule, names=rule.names + SPARE) if config.wrong_names else rule
    with accelerator.main_process_first():
        view_names = [
            cached_names(memory, view, files, longer, f"{told} {flip}", progress)
            for flip, view in zip(flips, views, strict=False)
        ]

    to_training(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable(name, config))
    if config.gradient_checkpointing:
        model.language.llm.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        model.language.compile()
    trainer = Trainer(model, config.release, model.language.widest_tail(), config.noise)
    trainer = loop.start(trainer, len(records), config.last_rate)

    def caption(share: range) -> list[str]:
        if config.release:  # its query tokens have changed since
            queries = captioner.query_features([val_records[row].path for row in share])
        else:
            queries = torch.from_numpy(val_queries[share.start : share.stop]).float()
        return captions_of(captioner, config, queries)

    def scores() -> dict[str, float]:
        said = loop.together(len(val_records), caption)
        if not accelerator.is_main_process:
            return {}
        return {"cider": cider(dict(enumerate(said)), {i: record.captions for i, record in enumerate(val_records)})}

    for rows, draws in loop.batches(scores):
        draw = random.Random(draws)
        chosen = [int(draw.random() < 0.5) if config.mirror else 0 for _ in rows]
        if config.release:
            with torch.no_grad():
                given = model.patch_tokens(captioner.pixels([records[row].path for row in rows], chosen).to(accelerator.device))
        else:
            given = torch.stack([torch.from_numpy(views[view][row]) for view, row in zip(chosen, rows, strict=True)]).float()

        def texts_for(queries, rows=rows, chosen=chosen, draw=draw):
            if config.release:
                names = [[n.name for n in row] for row in captioner.retrieve(queries)]
            else:
                names = [view_names[view][row] for view, row in zip(chosen, rows, strict=True)]
            told = [retold(n, captions[row], renamer, config, rule.names, draw) for n, row in zip(names, rows, strict=True)]
            packed = model.language.pack([said for _, said in told], config.text_slots, config.max_tokens)
            return [kept for kept, _ in told], packed

        loop.backward(trainer(given.to(accelerator.device), texts_for))


if __name__ == "__main__":
    typer.run(command(main))
