"""Both recipes in two processes, by `accelerate launch`: losses and tensors of one process that accumulates two batches.

Each process sees the batch that one process would see at that place, with the same draws, so they differ only in the order
of sums, of losses and of gradients.
"""

import os
import subprocess
import sys

import pytest
import torch
from tiny_run import REPOSITORY, config_for, finish, log, start, world

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
