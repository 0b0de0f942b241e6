"""Run by torchrun: two processes with half of the pairs each. The argument is the folder for their losses and gradients."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from evcap.config import QFormerConfig
from evcap.regions.heads import RegionTextHead
from evcap.training.region_losses import region_text_loss

SAME = [5, 2, 5, 5]  # numbers of the four texts: three regions have one text
SMALL = QFormerConfig(width=8, layers=2, heads=2, intermediate=16)


def pairs() -> tuple[RegionTextHead, torch.Tensor, torch.Tensor]:
    """A head, query features of four regions, features of their texts."""
    torch.manual_seed(0)
    head = RegionTextHead(6, 7, SMALL)
    for tensor in head.parameters():
        torch.nn.init.normal_(tensor, std=0.5)
    return head, torch.randn(4, 3, 6), torch.randn(4, 7)


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    head, regions, texts = pairs()
    mine = regions[2 * rank : 2 * rank + 2].clone().requires_grad_()
    loss = region_text_loss(head, mine, texts[2 * rank : 2 * rank + 2])
    loss.backward()
    found = {"loss": loss.detach(), "gradient": mine.grad.clone()}
    mine.grad = None
    same = torch.tensor(SAME[2 * rank : 2 * rank + 2])
    shared = region_text_loss(head, mine, texts[2 * rank : 2 * rank + 2], same)
    shared.backward()
    torch.save(found | {"shared": shared.detach(), "shared gradient": mine.grad}, folder / f"{rank}.pt")
    accelerator.wait_for_everyone()  # a process that leaves while the other works may die of it
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
