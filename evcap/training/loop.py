"""The loop of both training recipes: which images a step takes, the update, log, checkpoints, validation."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list, gather_object
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

from evcap.errors import EvcapError
from evcap.model.evcap import EVCap, adapted_parts, load_parts, trained_parts
from evcap.progress import Progress, silent
from evcap.row_store import Share
from evcap.runtime import processes, training_precision, use_all_cores
from evcap.training.run_folder import RunFolder, parameter_groups

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Learner(nn.Module):
    """What accelerate wraps: a model without its frozen tower, which every process keeps whole and nobody exchanges, but with
    the blocks of it that are adapted.

    Subclasses give the loss in `forward`, from `model`, and tell what checkpoints hold where that is no whole EVCap.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.parts = nn.ModuleDict({name: part for name, part in model.named_children() if name != "backbone"})
        self.own = nn.ParameterDict(dict(model.named_parameters(recurse=False)))  # those that are in no part
        self.tower = nn.ModuleList(adapted_parts(model).values() if isinstance(model, EVCap) else ())
        self.__dict__["model"] = model  # no submodule, or the tower would come along

    def trained_parts(self) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint, by their names in the model."""
        return trained_parts(self.model)

    def load(self, given: dict[str, torch.Tensor], where: str) -> None:
        """Take the tensors of a checkpoint. Raises EvcapError for those of another model."""
        load_parts(self.model, given, where)


class TrainingLoop:
    """AdamW steps of one run through accelerate in bf16 where that is fast, resumed where its folder stopped.

    config: a recipe's dataclass with output, seed, epochs, max_steps, batch, accumulate, learning_rate, weight_decay, warmup,
    validate and checkpoint_minutes. Raises EvcapError when the output folder holds a run with other settings, and from
    `start` when the images are fewer than one step takes.
    """

    def __init__(self, config, progress: Progress = silent, report: Callable[[str], None] = lambda line: None):
        self.config = config
        state = processes()
        precision = training_precision(state.device)
        logged = {"log_with": "tensorboard", "project_dir": config.output}
        self.accelerator = Accelerator(mixed_precision=precision, cpu=state.device.type == "cpu", **logged)
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and self.accelerator.distributed_type == DistributedType.MULTI_CPU:
            _shard_on_cpus(self.accelerator, precision)
        use_all_cores(state.device, state.num_processes)
        torch.manual_seed(config.seed)
        self.progress, self.report = (progress, report) if self.accelerator.is_main_process else (silent, lambda line: None)
        with self.accelerator.main_process_first():
            self.run = RunFolder(config.output, dataclasses.asdict(config))
        self.accelerator.init_trackers("tensorboard")
        self._totals: Counter = Counter()

    @property
    def share(self) -> Share:
        """Which of the images this process looks at when features are computed; caches belong to one machine."""
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", self.accelerator.num_processes))
        return self.accelerator.local_process_index, beside

    def start(self, trainer: Learner, pictures: int, last_rate: float = 0.0, by_epoch: bool = False) -> nn.Module:
        """Optimizer and schedule for the parameters of `trainer` that need gradients; returns the wrapped trainer.

        trainer: its forward pass gives the loss, its model is what checkpoints hold. last_rate: share of the learning rate
        that is left at the end of its cosine. by_epoch: `share_by_epoch` in place of warm-up and cosine.
        """
        config = self.config
        self.learner, self.pictures = trainer, pictures
        self.step_size = config.batch * config.accumulate * self.accelerator.num_processes
        self.steps_per_epoch = pictures // self.step_size
        if not self.steps_per_epoch:
            raise EvcapError(f"a step takes {self.step_size} images (batch x accumulate x processes), there are {pictures}")
        if self.sharded and config.validate:
            raise EvcapError("a process that holds a part of a model cannot caption with it alone: set validate to 0")
        self.total = min(self.steps_per_epoch * config.epochs, config.max_steps or 10**9)
        saved = broadcast_object_list([self.run.checkpoint() if self.accelerator.is_main_process else None])[0]
        self.done = saved["step"] if saved else 0
        if saved:
            trainer.load(saved["tensors"], saved["file"])
        groups = parameter_groups(trainer, config.weight_decay, without=trainer.tower.parameters())
        adapted = [group for group in parameter_groups(trainer.tower, config.weight_decay) if group["params"]]
        groups += [group | {"lr": config.tower_rate} for group in adapted]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        from transformers import get_cosine_with_min_lr_schedule_with_warmup  # slow import

        if by_epoch:
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: share_by_epoch(step // self.steps_per_epoch, config.epochs)
            )
        else:
            self.scheduler = get_cosine_with_min_lr_schedule_with_warmup(
                optimizer, config.warmup, self.total, min_lr_rate=last_rate
            )
        if self.by_deepspeed:
            if config.accumulate > 1:
                raise EvcapError("DeepSpeed updates after every backward pass here: set accumulate to 1, and a larger batch")
            # it asks for the batch size, which it would else take from a data loader
            self.accelerator.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch
        # frozen tensors are alike in all processes: they came from the same files
        trainer._ddp_params_and_buffers_to_ignore = [name for name, p in trainer.named_parameters() if not p.requires_grad]
        self.trainer, self.optimizer = self.accelerator.prepare(trainer, optimizer)
        if saved:
            self._load_optimizer(saved)
        return self.trainer

    @property
    def by_deepspeed(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the tensors only."""
        return self.by_deepspeed or self.accelerator.distributed_type == DistributedType.FSDP

    def _load_optimizer(self, saved: dict) -> None:
        if self.by_deepspeed:  # each process wrote its part of the optimizer beside the trained tensors
            self.accelerator.load_state(self._parts(saved["step"]), load_module_strict=False)
        else:
            set_optimizer_state_dict(self.trainer, self.optimizer.optimizer, saved["optimizer"], options=WHOLE)
        self.scheduler.load_state_dict(saved["scheduler"])

    def _save(self, step: int) -> dict[str, torch.Tensor]:
        """A checkpoint, by all processes together: a sharded model is put together first. The trained tensors, whole."""
        tensors = self._trained()
        if self.by_deepspeed:
            self.accelerator.save_state(self._parts(step), exclude_frozen_parameters=True)
            optimizer = {}
        else:
            optimizer = get_optimizer_state_dict(self.trainer, self.optimizer.optimizer, options=WHOLE)
        if self.accelerator.is_main_process:
            self.run.save(tensors, optimizer, self.scheduler.state_dict(), step)
        return tensors

    def _parts(self, step: int) -> str:
        return str(self.run.folder / "checkpoint" / f"deepspeed-{step}")

    def _trained(self) -> dict[str, torch.Tensor]:
        """The trained tensors, whole, on every process."""
        if not self.by_deepspeed:
            return whole_tensors(self.learner.trained_parts())
        import deepspeed

        wanted = self.learner.trained_parts()
        with deepspeed.zero.GatheredParameters([p for name, p in self.learner.model.named_parameters() if name in wanted]):
            return {name: tensor.detach().cpu().clone() for name, tensor in self.learner.trained_parts().items()}

    def batches(self, validate: Callable[[], dict[str, float]]) -> Iterator[tuple[list[int], int]]:
        """Image numbers and a seed for every forward pass; an update follows the last pass of each step.

        The caller hands each pass's loss to `backward`. Every step is seeded by (seed, step), so a resumed run repeats the
        same draws. validate: scores, called by every process at the end of each epoch and of the run; those of the main
        process count, and its best "cider" is kept.
        """
        config, seed = self.config, self.config.seed
        best = max((r["cider"] for r in self.run.records() if "cider" in r), default=-1.0)
        saved_at = time.monotonic()
        tensors = self._trained() if self.done == self.total else {}  # killed right behind its last checkpoint
        title = Path(config.output).name
        with self.progress(self.total, title, "step", self.done) as advance:
            for step in range(self.done, self.total):
                epoch, inside = divmod(step, self.steps_per_epoch)
                order = torch.randperm(self.pictures, generator=torch.Generator().manual_seed(seed + epoch))
                chosen = order[inside * self.step_size : (inside + 1) * self.step_size]
                for micro in range(config.accumulate):
                    place = micro * self.accelerator.num_processes + self.accelerator.process_index
                    draws = (seed * 1_000_003 + step) * 1009 + place
                    torch.manual_seed(draws)
                    yield chosen[place * config.batch : (place + 1) * config.batch].tolist(), draws
                totals = self._update(step)
                advance(note=", ".join(f"{name} {value:.3f}" for name, value in totals.items()))
                last = step + 1 == self.total
                if config.validate and (last or inside + 1 == self.steps_per_epoch):
                    best = self._validate(validate, step, epoch, best)
                if last:
                    tensors = self._save(step + 1)
                elif self._agreed(time.monotonic() - saved_at > 60 * config.checkpoint_minutes):
                    self._save(step + 1)
                    saved_at = time.monotonic()
            if self.accelerator.is_main_process:
                self.run.save_trained(tensors, "last")
                self.report(f"wrote {self.run.plot()}")
        self.accelerator.end_training()

    def _agreed(self, due: bool) -> bool:
        """What the main process thinks: clocks differ, and a checkpoint is written together."""
        return broadcast_object_list([due])[0]

    def together(self, count: int, work: Callable[[range], list]) -> list:
        """Results of items 0..count-1, in order, in every process: each does the `work` of its share."""
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        edges = [count * number // processes for number in range(processes + 1)]
        return gather_object(work(range(edges[own], edges[own + 1])))

    def backward(self, loss: torch.Tensor, **parts: float | torch.Tensor) -> None:
        """Gradients of one forward pass; `parts` are logged beside the loss."""
        self.accelerator.backward(loss / self.config.accumulate)
        for name, value in {**parts, "loss": loss}.items():
            self._totals[name] += float(value.detach() if isinstance(value, torch.Tensor) else value) / self.config.accumulate

    def _update(self, step: int) -> dict[str, float]:
        device = self.accelerator.device
        means = {k: self.accelerator.reduce(torch.tensor(v, device=device), "mean") for k, v in self._totals.items()}
        totals = {name: value.item() for name, value in means.items()}
        self._totals.clear()
        self.accelerator.clip_grad_norm_(self.trainer.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.accelerator.log(totals, step=step)
        if self.accelerator.is_main_process:
            self.run.record(step=step, **totals)
        return totals

    def _validate(self, validate, step: int, epoch: int, best: float) -> float:
        scores = validate()  # all processes together: nobody waits so long for another that a collective gives up
        if not self.accelerator.is_main_process:
            return best
        self.run.record(step=step, **scores)
        self.accelerator.log({f"val_{k}": v for k, v in scores.items()}, step=step)
        self.report(f"epoch {epoch + 1}: " + ", ".join(f"val {k} {v:.1f}" for k, v in scores.items()))
        if scores.get("cider", best) >= best:
            best = scores.get("cider", best)
            self.run.save_trained(self.learner.trained_parts(), "best")
        return best


def share_by_epoch(epoch: int, epochs: int) -> float:
    """Share of the learning rate in an epoch, from 0 on, by DynRefer's schedule: the release means to warm up in the first, but
    from the full rate on, and falls by a cosine afterwards, once an epoch."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs)) if epoch else 1.0


def whole_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same on the CPU, those that FSDP keeps in parts put together; all processes call it."""
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().cpu() for k, v in tensors.items()}


def _shard_on_cpus(accelerator: Accelerator, precision: str) -> None:
    """FSDP as `accelerate launch` sets it in the environment: accelerate itself takes it for GPUs and their like alone."""
    plugin = FullyShardedDataParallelPlugin()
    if precision != "no":
        plugin.set_mixed_precision(precision)
    accelerator.state.fsdp_plugin, accelerator.state.distributed_type = plugin, DistributedType.FSDP
