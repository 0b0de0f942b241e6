"""Low-rank adapters on a frozen language model (LoRA, arXiv 2106.09685).

Written here, not taken from peft: it is thirty lines, keeps the trained file to plain tensors and merges at load.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import nn

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
T5 = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")
TARGETS = LLAMA + T5


class LoraLinear(nn.Module):
    """Frozen linear map plus the trainable product `scale * up @ down`; `up` starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weights, at whose type T5 looks before it calls."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = nn.functional.linear(x, self.down.to(x.dtype))
        return self.base(x) + nn.functional.linear(low, self.up.to(x.dtype) * self.scale)


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Wrap every attention and feed-forward projection of a model that calls them as LLaMA or T5 does, in place."""
    for parent in list(model.modules()):
        for name in TARGETS:
            base = getattr(parent, name, None)
            if isinstance(base, nn.Linear):
                setattr(parent, name, LoraLinear(base, rank, alpha))


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Fold the adapters into the weights, in float32, and remove the wrappers: inference then costs nothing extra.

    Weights of 8 and 4 bits take no sum: their wrappers stay.
    """
    for parent, name, wrapped in _wrapped(model):
        weight = wrapped.base.weight
        if weight.is_floating_point():
            weight.copy_((weight.float() + wrapped.scale * wrapped.up.float() @ wrapped.down.float()).to(weight.dtype))
            setattr(parent, name, wrapped.base)


def twin(model: nn.Module) -> nn.Module:
    """Modules of their own over the same tensors: what is wrapped or unwrapped in one is not in the other."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def plain_twin(model: nn.Module) -> nn.Module:
    """The model as it was before it had adapters: a twin without a wrapper.

    So that one thread may ask it while another captions with the adapters. Folded ones stay in it.
    """
    plain = twin(model)
    for parent, name, wrapped in list(_wrapped(plain)):
        setattr(parent, name, wrapped.base)
    return plain


def _wrapped(model: nn.Module) -> Iterator[tuple[nn.Module, str, LoraLinear]]:
    """Each adapter with the module that holds it, and its name there."""
    for parent in list(model.modules()):
        for name in TARGETS:
            wrapped = getattr(parent, name, None)
            if isinstance(wrapped, LoraLinear):
                yield parent, name, wrapped
