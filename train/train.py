"""Training of EVCap itself (arXiv 2311.15879, section 3.3): retrieval on, fusion + projection + T_obj learn.

The image tower, the image Q-Former and the language model are frozen, so Q and the retrieved names of every picture are
computed once. A picture that is itself in the memory never finds its own entries. Two augmentations make the captions
listen to the memory: names are dropped, and names are renamed together with the words of the captions they stand for
(dog -> teapot in both), so that the model learns to say the retrieved name and not the one it would guess.

    accelerate launch train/train.py train/configs/embedded.yaml --data DIR
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from evcap.build import build_model, name_tokenizer
from evcap.captioner import EVCap
from evcap.config import load_preset, load_yaml
from evcap.datasets import read_lvis_names
from evcap.errors import EvcapError
from evcap.features import cached_queries
from evcap.memory import VisualNameMemory
from evcap.metrics import cider
from evcap.predictor import Captioner, encoder_fingerprint
from evcap.renaming import Renamer
from evcap.reward import CiderReward
from evcap.text import clean_caption
from evcap.training import RunFolder, parameter_groups, read_split


@dataclass(frozen=True)
class Config:
    """All that a run depends on, beside the data folder."""

    output: str
    start_from: str  # trained tensors of pretraining
    memory: str  # folder made by memory/build.py with the same tensors
    sets: list[str]
    substitutes: str  # list of names below --data, one a line, from which renaming draws
    epochs: int
    batch: int
    learning_rate: float
    preset: str = "embedded"
    train_lora: bool = False  # the language model's LoRA of pretraining learns on
    accumulate: int = 1
    samples: int = 0  # captions drawn per picture for self-critical training on CIDEr; 0 = cross-entropy
    rename: float = 0.4  # share of pictures whose matched names are renamed
    drop_names: float = 0.1  # share of retrieved names left out; half as many pictures lose all of them
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

    def forward(self, queries, name_ids, name_mask, names, captions, weights=None):
        """weights (B,k): what each caption's tokens count; None = all the same."""
        vectors = self.model.visual_vectors(queries, name_ids, name_mask)
        prompt = self.model.language.prompt(vectors, names, self.tail_slots)
        if weights is None:
            return self.model.language.loss(prompt, captions)
        losses = self.model.language.token_losses(prompt, captions)
        per_slot = nn.functional.pad(weights, (1, 0)).gather(1, captions.segment)
        return (losses * per_slot).sum() / (captions.segment > 0).sum()


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
    captions = captioner.caption_features(torch.from_numpy(queries).float(), beams=3, max_length=24, batch_size=40)
    captioner.model.train()
    predictions = {i: c.caption for i, c in enumerate(captions)}
    return cider(predictions, {i: records[i].captions for i in predictions})


@torch.no_grad()
def criticise(model: EVCap, reward: CiderReward, queries, name_ids, name_mask, names, references, config: Config):
    """Draw captions and score them: each counts by how far its CIDEr lies above the mean of the picture's others."""
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = model.visual_vectors(queries, name_ids, name_mask)
        drawn = model.language.sample(model.language.prompt(vectors, names), config.samples, max_length=24)
    model.train()
    rewards = reward(drawn, references)
    advantage = (rewards - rewards.mean(1, keepdim=True)) * config.samples / (config.samples - 1)
    return drawn, advantage, rewards.mean().item()


def trainable(name: str, config: Config) -> bool:
    if name.startswith("fusion.embeddings."):
        return False
    return name.startswith(("fusion", "projection")) or (config.train_lora and name.endswith((".down", ".up")))


def main(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see train/configs/.")],
    data: Annotated[Path, typer.Option(help="Folder of the data sets, see data/README.md.")],
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
) -> None:
    config = load_yaml(config_path, Config)
    accelerator = Accelerator(mixed_precision="bf16", log_with="tensorboard", project_dir=config.output)
    torch.manual_seed(config.seed)
    quiet = quiet or not accelerator.is_main_process
    with accelerator.main_process_first():
        run = RunFolder(config.output, dataclasses.asdict(config))
    accelerator.init_trackers("tensorboard")

    preset = load_preset(config.preset)
    model = build_model(preset, config.start_from)
    encoder = encoder_fingerprint(model)
    memory = VisualNameMemory.open(config.memory, encoder)
    captioner = Captioner(model, memory)
    substitutes = [row[0] for row in read_lvis_names(data / config.substitutes)]
    renamer = Renamer(memory.counts(), substitutes)
    records = read_split(data, config.sets, "train", config.without_names)
    val_records = read_split(data, config.sets, "val")[: config.validate]
    with accelerator.main_process_first():
        views = [cached_queries(model, records, data, encoder, mirrored, quiet) for mirrored in (False, True)]
        val_queries = cached_queries(model, val_records, data, encoder, False, quiet)
    view_names = [retrieved_names(memory, view, records, preset.memory, quiet) for view in views]
    captions = [[clean_caption(c) for c in r.captions] for r in records]
    reward = CiderReward(captions) if config.samples else None
    tokenize = name_tokenizer()

    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable(name, config))
    if config.compile:
        model.language.compile()
    trainer = Trainer(model, model.language.widest_tail())
    optimizer = torch.optim.AdamW(parameter_groups(trainer, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98))
    world = accelerator.num_processes
    step_size = config.batch * config.accumulate * world
    steps_per_epoch = len(records) // step_size
    total_steps = min(steps_per_epoch * config.epochs, config.max_steps or 10**9)
    scheduler = get_cosine_schedule_with_warmup(optimizer, config.warmup, total_steps)
    done = run.resume(model, optimizer, scheduler)
    trainer, optimizer = accelerator.prepare(trainer, optimizer)

    best = max((r["cider"] for r in run.records() if "cider" in r), default=-1.0)
    saved_at = time.monotonic()
    bar = tqdm(total=total_steps, initial=done, desc=Path(config.output).name, unit="step", disable=quiet)
    for step in range(done, total_steps):
        epoch, inside = divmod(step, steps_per_epoch)
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(config.seed + epoch))
        chosen = order[inside * step_size : (inside + 1) * step_size]
        totals = Counter()
        for micro in range(config.accumulate):
            place = micro * world + accelerator.process_index
            rows = chosen[place * config.batch : (place + 1) * config.batch].tolist()
            torch.manual_seed((config.seed * 1_000_003 + step) * 1009 + place)  # dropout and draws repeat after a resume
            draw = random.Random((config.seed * 1_000_003 + step) * 1009 + place)
            queries, names, texts = [], [], []
            for row in rows:
                view = draw.random() < 0.5
                queries.append(torch.from_numpy(views[view][row]))
                kept = renamer.drop(view_names[view][row], config.drop_names, draw)
                said = draw.sample(captions[row], len(captions[row]))
                kept, said = renamer.rename(kept, said, draw) if draw.random() < config.rename else (kept, said)
                names.append(kept)
                texts.append(said)
            inputs = (torch.stack(queries).float(), *tokenize(names), names)
            weights = None
            if reward:
                texts, weights, score = criticise(model, reward, *inputs, texts, config)
                totals["reward"] += score / config.accumulate
            packed = model.language.pack(texts, config.text_slots)
            loss = trainer(*inputs, packed, weights)
            accelerator.backward(loss / config.accumulate)
            totals["loss"] += loss.item() / config.accumulate
        totals = {
            k: accelerator.reduce(torch.tensor(v, device=accelerator.device), "mean").item() for k, v in totals.items()
        }
        accelerator.clip_grad_norm_(trainer.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        bar.update()
        bar.set_postfix({k: f"{v:.3f}" for k, v in totals.items()})
        accelerator.log(totals, step=step)
        last = step + 1 == total_steps
        if not accelerator.is_main_process:
            continue
        run.record(step=step, **totals)
        if config.validate and (last or inside + 1 == steps_per_epoch):
            score = validate(captioner, val_queries, val_records)
            run.record(step=step, cider=score)
            accelerator.log({"val_cider": score}, step=step)
            bar.write(f"epoch {epoch + 1}: val CIDEr {score:.1f}")
            if score >= best:
                best = score
                run.save_trained(model, "best")
        if last or time.monotonic() - saved_at > 60 * config.checkpoint_minutes:
            run.save(model, optimizer, scheduler, step + 1)
            saved_at = time.monotonic()
    if accelerator.is_main_process:
        run.save_trained(model, "last")
        bar.write(f"wrote {run.plot()}")
    accelerator.end_training()


if __name__ == "__main__":
    try:
        typer.run(main)
    except EvcapError as error:
        raise SystemExit(f"error: {error}") from None
