"""Training and scoring in two processes, by `accelerate launch`: losses and tensors of one process that accumulates two
batches, captions of one process.

In training each process sees the batch that one process would see at that place, with the same draws, so they differ only in
the order of sums, of losses and of gradients.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cli_tools import run_recipe
from places import REPOSITORY
from tiny_run import config_for, finish, here, log, start, world

from eval import evaluate
from evcap.weights.wheels import read_safetensors

pytestmark = pytest.mark.slow  # up to four processes, each of which imports torch and builds a model
# what `accelerate launch` sets for train/configs/accelerate/fsdp.yaml
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


@functools.cache
def alone(recipe: str) -> str:
    """The output of one process that accumulates two batches."""
    here(recipe, config_for(recipe, f"{recipe}-one", accumulate=2, max_steps=3, validate=6 * (recipe == "pretrain")))
    return f"{recipe}-one"


@pytest.mark.parametrize(("recipe", "kind"), [("pretrain", "ddp"), ("train", "ddp"), ("train", "fsdp")])
def test_two_processes_train_like_one_with_twice_the_accumulation(recipe, kind, monkeypatch):
    one, output = alone(recipe), f"{recipe}-{kind}"
    for name, value in FSDP.items() if kind == "fsdp" else ():
        monkeypatch.setenv(name, value)
    short = {"max_steps": 3, "validate": 6 * (recipe == "pretrain")}
    finish(start(recipe, config_for(recipe, output, accumulate=1, **short), processes=2))
    steps, expected = ([row for row in log(name) if "loss" in row] for name in (output, one))
    assert [row["step"] for row in steps] == [0, 1, 2]
    assert steps[0] == pytest.approx(expected[0], rel=1e-6)
    for mine, theirs in zip(steps, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    begin = read_safetensors(world() / "start.safetensors")
    ends = [read_safetensors(world() / name / "last.safetensors") for name in (one, output)]
    moved = sum((ends[0][k] - begin[k]).float().square().sum() for k in begin) ** 0.5
    apart = sum((ends[0][k] - ends[1][k]).float().square().sum() for k in begin) ** 0.5
    assert apart < 1e-3 * moved
    scores = [[row for row in log(name) if "loss" not in row] for name in (output, one)]
    assert scores[0] == scores[1] and bool(scores[0]) == (recipe == "pretrain")  # validation is shared out
    if kind == "fsdp":  # each process really holds a part only
        process = start(recipe, config_for(recipe, "fsdp-validates", max_steps=1), processes=2)
        assert "holds a part of a model" in process.communicate(timeout=400)[0]
        assert process.returncode


def test_a_sharded_model_is_saved_whole_and_goes_on(tmp_path):
    """FSDP's halves are put together for a checkpoint; a run resumed from it ends where one process alone does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(REPOSITORY / "tests" / "sharded.py"), str(tmp_path)]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    ended = torch.load(tmp_path / "tensors.pt", weights_only=True)
    for name, tensor in ended["alone"].items():
        assert ended["resumed"][name].shape == tensor.shape
        torch.testing.assert_close(ended["resumed"][name], tensor, msg=name)


def evaluate_squares(output: str, processes: int = 1) -> Path:
    """Caption with the tiny model, in this process or in several of their own; the output folder."""
    config = world() / f"{output}.yaml"
    preset = yaml.safe_load((world() / "preset.yaml").read_text())
    assets = world() / "assets"
    if not assets.exists():
        shutil.copytree(world() / "memory", assets / "memory")
        shutil.copy(world() / "start.safetensors", assets / "trained.safetensors")
    preset["assets"] = str(assets)
    preset["decoding"]["phrase_weight"] = 0.0
    (world() / "scored.yaml").write_text(yaml.safe_dump(preset))
    settings = {"captions": "squares/captions_train.json", "images": "squares/images", "output": str(world() / output)}
    settings |= {"preset": str(world() / "scored.yaml"), "batch_size": 3, "beams": 2, "max_length": 6, "scored": False}
    config.write_text(yaml.safe_dump(settings))
    if processes > 1:
        finish(start("evaluate", config, processes, folder="eval"))
    else:
        run_recipe(evaluate.main, config, "--data", world() / "data", "--quiet")
    return world() / output


def test_two_processes_say_what_one_says():
    one, two = evaluate_squares("one"), evaluate_squares("two", processes=2)
    expected = (one / "predictions.json").read_text()
    assert (two / "predictions.json").read_text() == expected and len(set(expected.split('"caption"'))) > 4
    shards = [(two / name).read_text().splitlines() for name in ("predictions.jsonl", "predictions-1.jsonl")]
    assert shards[0][0] == shards[1][0] and [len(lines) - 1 for lines in shards] == [9, 7]  # 3 and 3 batches of 16 images

    lines = [*shards[0][:5], '{"image_id": 107, "capt']  # the first was killed in its second batch
    (two / "predictions.jsonl").write_text("\n".join(lines))
    (two / "predictions.json").unlink()
    evaluate_squares("two")  # and one process goes on with what two have left
    assert (two / "predictions.json").read_text() == expected
    rows = [line for path in two.glob("*.jsonl") for line in path.read_text().splitlines()[1:]]
    assert len(rows) == 16 and len({json.loads(row)["image_id"] for row in rows}) == 16
