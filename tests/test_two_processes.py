"""Both recipes in two processes: the losses of one process that accumulates two batches.

Each process sees the batch that one process would see at that place, with the same draws, so the first step's losses
differ only in the order of a sum; later ones also by bfloat16 rounding of gradients that were added in another order.
"""

import os
import subprocess
import sys

import pytest
import torch
from tiny_run import REPOSITORY, config_for, finish, log, start, straight


@pytest.mark.parametrize("recipe", ["pretrain", "train"])
def test_two_processes_train_like_one_with_twice_the_accumulation(recipe):
    output = f"{recipe}-two"
    finish(start(recipe, config_for(recipe, output, accumulate=1, max_steps=3, validate=0), processes=2))
    one, two = ([row for row in rows if "loss" in row] for rows in (straight(recipe), log(output)))
    assert [row["step"] for row in two] == [0, 1, 2]
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    for mine, theirs in zip(two, one[:3], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-2)


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
