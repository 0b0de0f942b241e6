"""What an entry of the memory is found by."""

from __future__ import annotations

import torch
from torch import nn


def mean_keys(queries: torch.Tensor) -> torch.Tensor:
    """Q (N,32,W) -> memory keys (N,W) float32: the mean over the query features, unit length (EVCap, section 3.1)."""
    return nn.functional.normalize(queries.float().mean(1), dim=-1)
