"""Both recipes in two processes: the losses of one process that accumulates two batches.

Each process sees the batch that one process would see at that place, with the same draws, so the first step's losses
differ only in the order of a sum; later ones also by bfloat16 rounding of gradients that were added in another order.
"""

import pytest
from tiny_run import config_for, finish, log, start, straight


@pytest.mark.parametrize("recipe", ["pretrain", "train"])
def test_two_processes_train_like_one_with_twice_the_accumulation(recipe):
    output = f"{recipe}-two"
    finish(start(recipe, config_for(recipe, output, accumulate=1, max_steps=3, validate=0), processes=2))
    one, two = ([row for row in rows if "loss" in row] for rows in (straight(recipe), log(output)))
    assert [row["step"] for row in two] == [0, 1, 2]
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    for mine, theirs in zip(two, one[:3], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-2)
