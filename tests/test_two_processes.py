"""Training and scoring in two processes, by `accelerate launch`: losses and tensors of one process that accumulates two
batches, captions of one process.

In training each process sees the batch that one process would see at that place, with the same draws, so they differ only in
the order of sums, of losses and of gradients.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from tiny_run import REPOSITORY, config_for, finish, log, start, world
from typer.testing import CliRunner

from eval import evaluate
from evcap.console import command
from evcap.weights import read_safetensors


@pytest.mark.parametrize("recipe", ["pretrain", "train"])
def test_two_processes_train_like_one_with_twice_the_accumulation(recipe):
    short = {"max_steps": 3, "validate": 0}
    finish(start(recipe, config_for(recipe, f"{recipe}-one", accumulate=2, **short)))
    finish(start(recipe, config_for(recipe, f"{recipe}-two", accumulate=1, **short), processes=2))
    one, two = log(f"{recipe}-one"), log(f"{recipe}-two")
    assert [row["step"] for row in two] == [0, 1, 2]
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    begin = read_safetensors(world() / "start.safetensors")
    ends = [read_safetensors(world() / f"{recipe}-{count}" / "last.safetensors") for count in ("one", "two")]
    moved = sum((ends[0][k] - begin[k]).float().square().sum() for k in begin) ** 0.5
    apart = sum((ends[0][k] - ends[1][k]).float().square().sum() for k in begin) ** 0.5
    assert apart < 1e-3 * moved  # seen: 2e-7 of 1.7, and 0


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
    preset["decoding"]["phrases"] = 0.0
    (world() / "scored.yaml").write_text(yaml.safe_dump(preset))
    settings = {"captions": "squares/captions_train.json", "images": "squares/images", "output": str(world() / output)}
    settings |= {"preset": str(world() / "scored.yaml"), "batch_size": 3, "beams": 2, "max_length": 6, "scored": False}
    config.write_text(yaml.safe_dump(settings))
    if processes > 1:
        finish(start("evaluate", config, processes, folder="eval"))
    else:
        app = typer.Typer()
        app.command()(command(evaluate.main))
        result = CliRunner().invoke(app, [str(config), "--data", str(world() / "data"), "--quiet"])
        assert result.exit_code == 0, result.output
    return world() / output


def test_two_processes_say_what_one_says():
    one, two = evaluate_squares("one"), evaluate_squares("two", processes=2)
    expected = (one / "predictions.json").read_text()
    assert (two / "predictions.json").read_text() == expected and len(set(expected.split('"caption"'))) > 4
    shards = [(two / name).read_text().splitlines() for name in ("predictions.jsonl", "predictions-1.jsonl")]
    assert shards[0][0] == shards[1][0] and [len(lines) - 1 for lines in shards] == [9, 7]  # 3 and 3 batches of 16 pictures

    lines = [*shards[0][:5], '{"image_id": 107, "capt']  # the first was killed in its second batch
    (two / "predictions.jsonl").write_text("\n".join(lines))
    (two / "predictions.json").unlink()
    evaluate_squares("two")  # and one process goes on with what two have left
    assert (two / "predictions.json").read_text() == expected
    rows = [line for path in two.glob("*.jsonl") for line in path.read_text().splitlines()[1:]]
    assert len(rows) == 16 and len({json.loads(row)["image_id"] for row in rows}) == 16
