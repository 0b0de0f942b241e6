"""What both training recipes share: parameter groups, checkpoints that resume, the log and its curve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from evcap.datasets.coco import CaptionedImage, read_coco_captions
from evcap.errors import EvcapError
from evcap.files import replacing, write_text
from evcap.weights.wheels import read_safetensors, write_safetensors


def parameter_groups(module: torch.nn.Module, weight_decay: float, without: Iterable[torch.nn.Parameter] = ()) -> list[dict]:
    """Trainable parameters; norms, biases and single vectors without weight decay, as in the EVCap release."""
    left_out = set(without)
    trainable = [p for p in module.parameters() if p.requires_grad and p not in left_out]
    return [
        {"params": [p for p in trainable if p.squeeze().ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.squeeze().ndim <= 1], "weight_decay": 0.0},
    ]


def read_split(data: Path, sets: list[str], split: str, without_names: Sequence[str] = ()) -> list[CaptionedImage]:
    """The captioned images of one split of several sets, in order; layout of data/README.md.

    Images of which a caption says one of `without_names` are left out: so new names can be tested that were never seen.
    """
    records = [r for s in sets for r in read_coco_captions(data / s / f"captions_{split}.json", data / s / "images")]
    if not without_names:
        return records
    from evcap.memory.names import NameFinder

    finder = NameFinder(without_names)
    return [r for r in records if not any(finder.find(caption) for caption in r.captions)]


class RunFolder:
    """One training run on disk: log.jsonl, checkpoint/, best.safetensors, curve.png.

    No random state is stored: recipes seed every step from (seed, step), so a resumed run repeats the same draws.
    """

    def __init__(self, folder: str | Path, settings: dict):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = self.folder / "log.jsonl"
        if self._log.exists() and not self._log.read_bytes().endswith(b"\n"):  # killed while it wrote a line
            with self._log.open("a") as file:
                file.write("\n")
        recorded = self.folder / "settings.json"
        begun = self._log.exists() or (self.folder / "checkpoint").exists()
        if not (recorded.exists() and begun):
            write_text(recorded, json.dumps(settings, indent=1))
        elif json.loads(recorded.read_text()) != settings:
            raise EvcapError(f"{self.folder} holds a run with other settings; choose another output folder or delete it")

    def record(self, **values) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def records(self) -> list[dict]:
        """All logged values; where a resumed run repeated a step, the later record counts."""
        if not self._log.exists():
            return []
        rows = [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]  # one may be torn
        return list({(row["step"], "loss" in row): row for row in rows}.values())

    def save(self, tensors: dict[str, torch.Tensor], optimizer: dict, scheduler: dict, step: int) -> None:
        """Trained tensors first, then the optimizer's file, whose step names them: a torn save resumes from the old one."""
        folder = self.folder / "checkpoint"
        write_safetensors(tensors, folder / f"model-{step}.safetensors")
        with replacing(folder / "state.pt") as file:
            torch.save({"optimizer": optimizer, "scheduler": scheduler, "step": step}, file)
        for old in folder.glob("model-*.safetensors"):
            if old.name != f"model-{step}.safetensors":
                old.unlink()
        for old in folder.glob("deepspeed-*"):
            if old.name != f"deepspeed-{step}":
                shutil.rmtree(old)

    def checkpoint(self) -> dict | None:
        """The last one, if any: "tensors" and the "file" that they lie in, states of "optimizer" and "scheduler", "step"."""
        path = self.folder / "checkpoint" / "state.pt"
        if not path.exists():
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
        file = path.parent / f"model-{state['step']}.safetensors"
        return state | {"tensors": read_safetensors(file), "file": str(file)}

    def save_trained(self, tensors: dict[str, torch.Tensor], name: str) -> Path:
        """Trained tensors in float16, the form that ships."""
        path = self.folder / f"{name}.safetensors"
        write_safetensors({k: v.to(torch.float16) for k, v in tensors.items()}, path)
        return path

    def plot(self) -> Path:
        """curve.png: loss per step, smoothed, and validation CIDEr over it."""
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        rows = self.records()
        steps = [(r["step"], r["loss"]) for r in rows if "loss" in r]
        scores = [(r["step"], r["cider"]) for r in rows if "cider" in r]
        figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
        axis.plot(*zip(*steps, strict=True), color="tab:blue", alpha=0.25, linewidth=0.8)
        width = max(1, len(steps) // 50)
        smooth = [
            (steps[i][0], sum(v for _, v in steps[max(0, i - width) : i + 1]) / (i + 1 - max(0, i - width)))
            for i in range(len(steps))
        ]
        axis.plot(*zip(*smooth, strict=True), color="tab:blue", label="training loss")
        axis.set(xlabel="optimizer step", ylabel="loss")
        handles = axis.get_lines()[1:]
        if scores:
            right = axis.twinx()
            handles += right.plot(*zip(*scores, strict=True), color="tab:orange", marker="o", label="validation CIDEr")
            right.set(ylabel="CIDEr")
        axis.set_title(self.folder.name, loc="left")
        figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
        path = self.folder / "curve.png"
        with replacing(path) as file:
            figure.savefig(file, dpi=130, format="png")
        plt.close(figure)
        return path
