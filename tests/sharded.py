"""Run by torchrun: two processes hold a half each of a model (FSDP 2); what a checkpoint gets is the whole.

The first argument is a folder. Process 0 writes there what it put together, and what one process alone arrives at.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from evcap.training.loop import WHOLE, whole_tensors


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8).requires_grad_(False), nn.Tanh(), nn.Linear(8, 5), nn.Linear(5, 1))
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)


def step(model, optimizer, number: int) -> None:
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(number))
    model(inputs).square().mean().backward()  # the same on both processes: the mean of gradients is the gradient
    optimizer.step()
    optimizer.zero_grad()


def shard(model: nn.Module, mesh) -> torch.optim.Optimizer:
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    alone, optimizer = make()
    for number in range(4):
        step(alone, optimizer, number)

    first, _ = make()
    optimizer = shard(first, mesh)
    for number in range(2):
        step(first, optimizer, number)
    tensors = whole_tensors(first.state_dict())
    state = get_optimizer_state_dict(first, optimizer, options=WHOLE)

    second, _ = make()  # a new start from the checkpoint
    parcel = [tensors, state]
    dist.broadcast_object_list(parcel)  # a file that all processes read
    second.load_state_dict(parcel[0])
    optimizer = shard(second, mesh)
    set_optimizer_state_dict(second, optimizer, parcel[1], options=WHOLE)
    for number in range(2, 4):
        step(second, optimizer, number)
    resumed = whole_tensors(second.state_dict())
    if dist.get_rank() == 0:
        torch.save({"resumed": resumed, "alone": alone.state_dict()}, folder / "tensors.pt")
    dist.barrier()  # a process that leaves while the other works may die of it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
