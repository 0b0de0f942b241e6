"""Seconds a training step: query features kept on disk, against the image tower and the Q-Former run in every step.

The embedded preset, its recipe's loss and trainable parts (fusion, projection, LoRA), real photos, bfloat16 autocast, no
compilation. Both sides take the same images and captions; the other side opens the photos and computes Q anew. The sides take
turns; each turn is one step and gives one ratio. Peak memory is that of a process of its own for each side.

    python bench/training.py --data DIR
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from evcap.captioner import Captioner
from evcap.cli.console import command
from evcap.cli.options import DataFolder
from evcap.evaluation.figures import spread, write_figures
from evcap.language.sentences import clean_caption
from evcap.model.evcap import trained_parts
from evcap.model.name_fusion import name_tokenizer
from evcap.training.features import cached_queries
from evcap.training.run_folder import parameter_groups, read_split

RESULTS = Path(__file__).parent / "results" / "training.json"
SLOTS, LEARNS = 80, ("fusion.qformer", "projection")


class Side:
    """A captioner in training, which takes one step from cached Q or from photos."""

    def __init__(self, data: Path, dataset: str, pictures: int):
        self.captioner = Captioner.load(device="cpu")
        self.model, self.tokenize = self.captioner.model, name_tokenizer()
        self.records = read_split(data, [dataset], "train")[:pictures]
        encoder = self.captioner.encoder_fingerprint
        self.rows = cached_queries(self.model, [r.path for r in self.records], data, encoder)
        self.model.train()
        self.model.backbone.eval()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(LEARNS))
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.05), lr=1e-5)

    def step(self, numbers: list[int], cached: bool) -> float:
        """Seconds of forward pass, backward pass and update."""
        start = time.perf_counter()
        pixels = None if cached else self.captioner.pixels([self.records[n].path for n in numbers])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if cached:
                queries = torch.stack([torch.from_numpy(self.rows[n]).float() for n in numbers])
            else:
                with torch.no_grad():
                    queries = self.model.query_features(self.model.backbone(pixels))
            names = [[hit.name for hit in row] for row in self.captioner.retrieve(queries)]
            captions = [[clean_caption(c) for c in self.records[n].captions] for n in numbers]
            packed = self.model.language.pack(captions, SLOTS)
            loss = self.model.loss(queries, self.tokenize(names), packed)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def peak_memory(data: Path, dataset: str, batch: int, cached: bool) -> float:
    """GB of a process of its own that takes three steps."""
    options = ["--data", data, "--dataset", dataset, "--batch", batch, "--alone", "cached" if cached else "anew"]
    run = subprocess.run([sys.executable, __file__, *map(str, options)], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def main(
    data: DataFolder,
    dataset: str = "flickr8k",
    batch: int = 16,
    turns: int = 12,
    alone: Annotated[str, typer.Option(help="Take three steps on one side, 'cached' or 'anew', and print the GB used.")] = "",
    output: Annotated[Path, typer.Option(help="JSON file of the figures.")] = RESULTS,
) -> None:
    side = Side(data, dataset, batch * (turns + 1))
    if alone:
        for turn in range(3):
            side.step(list(range(turn * batch, (turn + 1) * batch)), alone == "cached")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns + 1):  # the first warms up
        for cached in (True, False):
            took = side.step(list(range(turn * batch, (turn + 1) * batch)), cached)
            seconds[cached] += [took] if turn else []
    ratios = [anew / kept for kept, anew in zip(seconds[True], seconds[False], strict=True)]
    memory = {cached: peak_memory(data, dataset, batch, cached) for cached in (True, False)}
    figures = {
        "preset": "embedded",
        "dataset": f"{dataset} train",
        "batch": batch,
        "trained_numbers": sum(t.numel() for n, t in trained_parts(side.model).items() if n.startswith(LEARNS)),
        "seconds_a_step_cached": seconds[True],
        "seconds_a_step_anew": seconds[False],
        "ratios": ratios,
        "ratio_median": statistics.median(ratios),
        "peak_memory_gb_cached": memory[True],
        "peak_memory_gb_anew": memory[False],
        "kb_a_picture_on_disk": side.rows[0].nbytes / 1000,
    }
    write_figures(output, figures)
    table = Table("query features", "s a step, median", "lowest to highest", "peak memory, GB")
    for label, cached in (("kept on disk", True), ("computed in every step", False)):
        row = seconds[cached]
        table.add_row(label, *spread(row), f"{memory[cached]:.2f}")
    table.add_row("ratio", *spread(ratios), "")
    console = Console()
    console.print(table)
    console.print(f"wrote {output}")


if __name__ == "__main__":
    typer.run(command(main))
