"""Figures of a timed comparison: as JSON with the machine they were taken on, and as cells of a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch


def write_figures(path: Path, figures: dict) -> None:
    """Write `figures` with threads, cores, PyTorch's version and the kind of machine behind them, making the folder."""
    machine = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    machine |= {"torch": torch.__version__, "machine": platform.machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures | machine, indent=1) + "\n")


def spread(values: Sequence[float]) -> tuple[str, str]:
    """The median of several runs, and "lowest to highest"."""
    return f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"
