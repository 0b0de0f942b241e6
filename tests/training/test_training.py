"""The run folder, and both recipes killed in the middle of a tiny run: they resume to the same losses."""

import json
import os
import time

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from places import REPOSITORY
from tiny import tiny_evcap
from tiny_run import SAVED_ONCE, STEPS, config_for, forget_accelerate, fork, here, log, straight, world
from torch import nn

from evcap.errors import EvcapError
from evcap.model.evcap import load_parts, trained_parts
from evcap.training import loop
from evcap.training.loop import whole_tensors
from evcap.training.renaming import noisy
from evcap.training.run_folder import RunFolder, parameter_groups
from evcap.weights.wheels import read_safetensors
from evcap.yaml_files import load_yaml
from train import train
from train.pretrain import Config


def optimizer_of(model):
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=0.01)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def step(model, optimizer, scheduler, number):
    """One update that depends on every trained tensor, on the step, on the optimizer's moments and on the rate."""
    torch.manual_seed(number)
    loss = sum((p * torch.randn_like(p)).square().mean() for p in model.parameters() if p.requires_grad)
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    return loss.item()


def save(run, model, optimizer, scheduler, number):
    run.save(trained_parts(model), optimizer.state_dict(), scheduler.state_dict(), number)


def resume(run, model, optimizer, scheduler) -> int:
    saved = run.checkpoint()
    load_parts(model, saved["tensors"], saved["file"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    return saved["step"]


def test_resumed_model_optimizer_and_schedule_go_on_alike(tmp_path):
    model = tiny_evcap()
    parts = optimizer_of(model)
    run = RunFolder(tmp_path / "run", {"a": 1})
    assert run.checkpoint() is None
    for number in range(3):
        step(model, *parts, number)
    save(run, model, *parts, 3)
    expected = [step(model, *parts, number) for number in range(3, 6)]

    fresh = tiny_evcap()
    parts = optimizer_of(fresh)
    assert resume(RunFolder(tmp_path / "run", {"a": 1}), fresh, *parts) == 3
    assert [step(fresh, *parts, number) for number in range(3, 6)] == expected
    for (name, mine), theirs in zip(trained_parts(model).items(), trained_parts(fresh).values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_save_that_died_between_its_files_resumes_from_the_one_before(tmp_path, monkeypatch):
    model = tiny_evcap()
    parts = optimizer_of(model)
    run = RunFolder(tmp_path, {})
    save(run, model, *parts, 1)
    kept = {k: v.clone() for k, v in trained_parts(model).items()}
    step(model, *parts, 0)

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", die)
        save(run, model, *parts, 2)
    assert resume(run, model, *parts) == 1
    assert all(torch.equal(v, kept[k]) for k, v in trained_parts(model).items())
    save(run, model, *parts, 3)
    assert [p.name for p in (tmp_path / "checkpoint").glob("model-*")] == ["model-3.safetensors"]


def test_settings_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", die)
        RunFolder(tmp_path, {"seed": 0})
    assert not list(tmp_path.iterdir())
    RunFolder(tmp_path, {"seed": 1})


def test_the_later_record_of_a_step_counts(tmp_path):
    run = RunFolder(tmp_path, {})
    assert run.records() == []
    for value in (dict(step=0, loss=1.0), dict(step=1, loss=0.9), dict(step=1, cider=3.0), dict(step=1, loss=0.8)):
        run.record(**value)
    assert run.records() == [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.8}, {"step": 1, "cider": 3.0}]
    assert run.plot().read_bytes().startswith(b"\x89PNG")


def test_a_line_torn_by_a_kill_spoils_no_other(tmp_path):
    RunFolder(tmp_path, {}).record(step=0, loss=1.0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    run = RunFolder(tmp_path, {})
    run.record(step=1, loss=0.5)
    assert run.records() == [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]


def test_fewer_pictures_than_a_step_takes():
    output = here("train", config_for("train", "few", batch=20), code=1)
    assert output.splitlines()[-1].endswith("processes), there are 16")
    assert not (world() / "few" / "last.safetensors").exists()


def test_trained_tensors_ship_in_half_precision(tmp_path):
    model = tiny_evcap()
    saved = read_safetensors(RunFolder(tmp_path, {}).save_trained(trained_parts(model), "best"))
    assert saved.keys() == trained_parts(model).keys()
    assert all(v.dtype == torch.float16 for v in saved.values())


def test_noise_of_an_image_is_at_most_that_many_standard_deviations():
    queries = torch.randn(400, 32, 24, generator=torch.Generator().manual_seed(0)) * 3 + 5
    torch.manual_seed(0)
    moved = noisy(queries, 2.0) - queries
    sizes = moved.std((1, 2)) / queries.std()
    assert 0 < sizes.min() < 0.1 and 1.9 < sizes.max() < 2.2
    assert sizes.mean() == pytest.approx(1.0, abs=0.1)  # drawn evenly
    assert moved.mean().abs() < 0.1
    assert torch.equal(noisy(queries, 0.0), queries)


def test_only_matrices_decay():
    module = nn.ModuleDict({"linear": nn.Linear(4, 3), "norm": nn.LayerNorm(4), "frozen": nn.Linear(2, 2)})
    module["queries"] = nn.ParameterList([nn.Parameter(torch.zeros(1, 1, 5)), nn.Parameter(torch.zeros(1, 8, 5))])
    module["frozen"].requires_grad_(False)
    decay, plain = parameter_groups(module, 0.1)
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert [tuple(p.shape) for p in decay["params"]] == [(3, 4), (1, 8, 5)]
    assert [tuple(p.shape) for p in plain["params"]] == [(3,), (4,), (4,), (1, 1, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pretrain", "train"])
def test_a_killed_run_resumes_to_the_same_losses(recipe):
    """SIGKILL somewhere in the middle, then the same command again."""
    output, whole = f"{recipe}-killed", f"{recipe}-straight"
    config = config_for(recipe, output)
    process = fork(recipe, config)
    logged = world() / output / "log.jsonl"
    while not (logged.exists() and logged.read_text().count('"loss"') >= 5):
        assert process.alive() or process.finish()
        time.sleep(0.002)
    process.kill()
    before = max(row["step"] for row in log(output)) + 1
    saved = torch.load(world() / output / "checkpoint" / "state.pt", weights_only=True)["step"]
    assert 0 < saved <= before < STEPS
    fork(recipe, config).finish()
    assert log(output) == straight(recipe)  # every logged number of every step, to the last digit

    straight_files, files = ({p.name for p in (world() / f).iterdir()} for f in (whole, output))
    assert files == straight_files >= {"best.safetensors", "last.safetensors", "curve.png", "log.jsonl", "settings.json"}
    theirs = read_safetensors(world() / whole / "last.safetensors")
    for name, tensor in read_safetensors(world() / output / "last.safetensors").items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture
def alone():
    """Accelerate as it starts in a process of its own; threads and state are put back."""
    threads = torch.get_num_threads()
    forget_accelerate()
    yield
    torch.set_num_threads(threads)
    forget_accelerate()


class Squares(loop.Learner):
    """A loss for all that is trained in a model."""

    def forward(self):
        return sum(p.square().mean() for p in self.parameters() if p.requires_grad)


def test_a_run_puts_its_tensors_together_once_at_its_end(alone, tmp_path, monkeypatch):
    """Checkpoint and last.safetensors are of one assembly; a run killed between the two writes the second when resumed."""
    calls = []
    monkeypatch.setattr(loop, "whole_tensors", lambda tensors: calls.append(1) or whole_tensors(tensors))
    config = Config(str(tmp_path / "run"), [], 1, 2, 1e-2, max_steps=2, validate=0, checkpoint_minutes=60)
    ends, last = [], tmp_path / "run" / "last.safetensors"
    for steps in (2, 0):
        training = loop.TrainingLoop(config)
        trainer = training.start(Squares(tiny_evcap()), pictures=8)
        assert [training.backward(trainer()) for _ in training.batches(dict)] == [None] * steps
        ends.append(read_safetensors(last))
        last.unlink()
    assert len(calls) == 2 and all(torch.equal(ends[1][name], tensor) for name, tensor in ends[0].items())
    assert not torch.equal(ends[0]["projection.weight"], tiny_evcap().projection.weight.half())


@pytest.mark.parametrize("recipe", ["pretrain", "train"])
def test_training_learns(recipe):
    losses = [row["loss"] for row in straight(recipe) if "loss" in row]
    assert len(losses) == STEPS
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


def test_only_what_a_recipe_trains_has_moved():
    begin = read_safetensors(world() / "start.safetensors")
    moved = {}
    for recipe in ("pretrain", "train"):
        straight(recipe)
        end = read_safetensors(world() / f"{recipe}-straight" / "last.safetensors")
        moved[recipe] = {k.split(".")[0] for k in end if not torch.equal(end[k], begin[k].half())}
    assert moved["pretrain"] == {"patch_norm", "image_qformer", "projection", "language", "text_projection"}
    assert moved["train"] == {"fusion", "projection", "language"}


@pytest.mark.slow
def test_release_mode_trains_what_the_release_trains():
    """Projection, T_obj and the image query tokens, through a tower that runs in every step."""
    changes = {"train_lora": False, "substitutes": "", "validate": 3, "learning_rate": 1e-2} | SAVED_ONCE
    config = config_for("train", "release", release=True, **changes)
    here("train", config)
    losses = [row["loss"] for row in log("release") if "loss" in row]
    assert len(losses) == STEPS and sum(losses[-4:]) < 0.95 * sum(losses[:4])
    begin, end = read_safetensors(world() / "start.safetensors"), read_safetensors(world() / "release" / "last.safetensors")
    moved = {k for k in end if not torch.equal(end[k], begin[k].half())}
    assert moved == {"projection.weight", "projection.bias", "image_qformer.queries", "fusion.qformer.queries"}


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_but_memory():
    here("train", config_for("train", "checkpointed", gradient_checkpointing=True, **SAVED_ONCE))
    straight("train")
    for name, tensor in read_safetensors(world() / "train-straight" / "last.safetensors").items():
        assert torch.equal(tensor, read_safetensors(world() / "checkpointed" / "last.safetensors")[name]), name


@pytest.mark.parametrize("path", sorted((REPOSITORY / "train" / "configs").glob("coco-*.yaml")), ids=lambda p: p.stem)
def test_configs_of_the_paper_are_read(path):
    config = load_yaml(path, train.Config)
    assert config.release == path.stem.endswith("release") and not config.substitutes and config.gradient_checkpointing


@pytest.mark.parametrize("path", sorted((REPOSITORY / "train/configs/accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_configs_of_accelerate_are_read(path):
    config = load_config_from_file(str(path))
    kinds = {"one-gpu": "NO", "ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[path.stem] and config.mixed_precision == "bf16" and not config.use_cpu


def test_settings_of_a_run_are_kept():
    straight("train")
    kept = json.loads((world() / "train-straight" / "settings.json").read_text())
    assert kept["seed"] == 3 and kept["sets"] == ["squares"]


def test_settings_of_a_run_that_never_began_can_be_corrected(tmp_path):
    RunFolder(tmp_path, {"preset": "wrong"})
    run = RunFolder(tmp_path, {"preset": "right"})
    run.record(step=0, loss=1.0)
    with pytest.raises(EvcapError, match="holds a run with other settings"):
        RunFolder(tmp_path, {"preset": "wrong"})
    RunFolder(tmp_path, {"preset": "right"})
