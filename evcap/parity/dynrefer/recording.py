"""What was recorded, read by name; names that were read count as covered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from evcap.errors import EvcapError
from evcap.weights.wheels import read_safetensors

Output = torch.Tensor | np.ndarray | list
TOLERANCE = 1e-4  # absolute, of values of size 1 to 10
RELATIVE = ("generated_score", "caption_score")  # products of many probabilities
# results and texts of meta.json that are cases of their own
SCORES = ("densecap", "ovad_map_percent", "region_acc", "learning_rate_5_epochs")
TEXTS = ("control_words", "caption_cleaning", "trainable_groups", "zero_at_init")


class Recording:
    """meta: what meta.json holds. tensors: what tensors.safetensors holds, as `recording[name]`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.meta = json.loads((folder / "meta.json").read_text())
        self.tensors = read_safetensors(folder / "tensors.safetensors")
        self.used: set[str] = set()

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        return read_safetensors(self.state_file)

    @property
    def state_file(self) -> Path:
        return self.folder / "state.safetensors"

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor, or with "state." before it a weight."""
        self.used.add(name)
        return self.state[name.removeprefix("state.")] if name.startswith("state.") else self.tensors[name]

    def array(self, name: str) -> np.ndarray:
        return self[name].numpy()

    def below(self, prefix: str) -> list[str]:
        """Names of tensors that begin with `prefix` and a dot."""
        return [name for name in self.tensors if name.startswith(f"{prefix}.")]

    def holds(self, name: str) -> bool:
        """Whether there is such a case: tensors below its name, or an entry of meta.json."""
        return name in self.meta or any(tensor.startswith(f"{name}.") for tensor in self.tensors)

    def unused(self) -> list[str]:
        """What nobody read: groups of tensors, by the first part of their names, and what meta.json tells of other cases."""
        tensors = {name.split(".")[0] for name in self.tensors.keys() - self.used}
        results = {f"results.{name}" for name in SCORES if name in self.meta["results"]}
        return sorted(tensors | ((results | {name for name in TEXTS if name in self.meta}) - self.used))

    def compare(self, outputs: Mapping[str, Output]) -> dict[str, float | bool]:
        """Of each output, by its recorded name: the largest difference, or, without fractions, whether it is equal."""
        return {name: self._compared(name, output) for name, output in outputs.items()}

    def _compared(self, name: str, output: Output) -> float | bool:
        if name.startswith("results."):
            self.used.add(name)
            return output == self.meta["results"][name.removeprefix("results.")]
        recorded, output = self[name], torch.as_tensor(output).detach()
        if output.shape != recorded.shape and (output.numel() != 1 or recorded.numel() != 1):
            raise EvcapError(f"{name} is {tuple(output.shape)}, the recording's {tuple(recorded.shape)}")
        if not recorded.dtype.is_floating_point:
            return bool((output == recorded).all())
        gap = (output.double() - recorded.double()).abs()
        return float((gap / recorded.double().abs() if name.endswith(RELATIVE) else gap).max())


def tolerance(name: str) -> float:
    """The largest difference that is allowed: none of boxes and of what is made of whole numbers."""
    if name.endswith(".dct"):
        return 1e-2  # sums of 50,000 values
    if name.startswith(("densecap.", "results.")):
        return 1e-6
    return 0.0 if name.startswith(("boxes", "region.", "hash.")) or name == "views.boxes" else TOLERANCE


def passed(name: str, result: float | bool) -> bool:
    return result if isinstance(result, bool) else result <= tolerance(name)
