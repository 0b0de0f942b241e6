"""Trained tensors in 8 bits: how far they are off, what stays exact, what is refused."""

import pytest
import torch
from cli_tools import run_recipe

from evcap.errors import EvcapError
from evcap.weights.shipped import read_trained, write_shipped
from evcap.weights.wheels import read_safetensors, write_safetensors
from train import pack


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {
        "matrix": torch.randn(64, 96) * torch.logspace(-6, 2, 64)[:, None],
        "kernel": torch.randn(80, 12, 3, 3),
        "nothing": torch.zeros(64, 64),
        "bias": torch.randn(5000),
        "small": torch.randn(4, 4),
        "count": torch.tensor(7),
    }


def test_rows_are_off_by_half_a_step_at_most(tensors, tmp_path):
    write_shipped(tensors, tmp_path / "packed.safetensors")
    found = read_trained(tmp_path / "packed.safetensors")
    assert found.keys() == tensors.keys()
    for name in ("matrix", "kernel", "nothing"):
        rows, packed = tensors[name].flatten(1), found[name].flatten(1)
        assert found[name].shape == tensors[name].shape and found[name].dtype == torch.float32
        assert ((rows - packed).abs() <= rows.abs().amax(1, keepdim=True) * (0.5001 / 127)).all()
    for name in ("bias", "small", "count"):
        assert torch.equal(found[name], tensors[name].half() if name != "count" else tensors[name])
    write_safetensors({k: v.half() for k, v in tensors.items()}, tmp_path / "half.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("packed", "half")]
    assert sizes[0] < 0.7 * sizes[1]


def test_files_of_runs_are_read_as_they_are(tensors, tmp_path):
    write_safetensors({"a": tensors["small"], "b": tensors["matrix"].half()}, tmp_path / "run.safetensors")
    found = read_trained(tmp_path / "run.safetensors")
    assert torch.equal(found["a"], tensors["small"]) and torch.equal(found["b"], tensors["matrix"].half())


def test_what_a_later_run_kept_is_not_rounded_again(tensors, tmp_path):
    """A run starts from a packed file, moves one matrix and writes all in float16, as runs do."""
    first, run, second = (tmp_path / f"{name}.safetensors" for name in ("first", "run", "second"))
    write_shipped(tensors, first)
    moved = {k: v.half() for k, v in read_trained(first).items()} | {"kernel": torch.randn(80, 12, 3, 3).half()}
    write_safetensors(moved, run)
    run_recipe(pack.main, run, second, "--earlier", first)
    before, after = read_safetensors(first), read_safetensors(second)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == {"kernel", "kernel:scale"}
    assert "is there already" in run_recipe(pack.main, run, second, code=1).output


def test_a_failed_run_and_a_damaged_file_are_refused(tensors, tmp_path):
    with pytest.raises(EvcapError, match="'small' holds numbers that are not finite"):
        write_shipped(tensors | {"small": torch.tensor([[float("nan")]])}, tmp_path / "packed.safetensors")
    assert not list(tmp_path.iterdir())
    for scale in (torch.ones(3), torch.ones(64, dtype=torch.float64)):
        write_safetensors({"a": torch.ones(64, 64, dtype=torch.int8), "a:scale": scale}, tmp_path / "packed.safetensors")
        with pytest.raises(EvcapError, match="scales of 'a' do not fit"):
            read_trained(tmp_path / "packed.safetensors")
