"""Devices and precisions: real ones, and simulated ones that are not here."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from evcap.errors import EvcapError
from evcap.runtime import (
    available_cores,
    computes_bfloat16,
    full_precision,
    half_dtype,
    half_precision,
    language_dtype,
    pick_device,
    tower_dtype,
    training_precision,
    use_threads,
)

FLAGS = Path("/proc/cpuinfo")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.skipif(not FLAGS.exists(), reason="only Linux tells the instructions of its CPU here")
def test_cpus_tell_whether_they_have_bfloat16():
    assert computes_bfloat16("cpu") == ("avx512_bf16" in FLAGS.read_text())


@pytest.fixture
def machine(monkeypatch):
    """A function: this machine has a CPU and GPUs of this kind from now on, as far as PyTorch tells."""

    def be(cpu: bool, gpus: int = 0, gpu: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        # emulated, every GPU "supports" it: T4 and V100 too
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: gpu or including_emulation)

    return be


@pytest.mark.parametrize(
    ("device", "cpu", "gpu", "half", "training", "tower"),
    [
        ("cuda:0", False, True, BF16, "bf16", F16),  # A100, H100
        ("cuda:0", True, False, F16, "fp16", F16),  # T4, V100
        ("cpu", True, False, BF16, "bf16", F32),
        ("cpu", False, False, F32, "no", F32),
        ("mps", True, True, F16, "no", F16),
    ],
)
def test_what_runs_in_which_precision(machine, device, cpu, gpu, half, training, tower):
    machine(cpu, 1, gpu)
    assert (half_dtype(device), training_precision(device)) == (half, training)
    assert (tower_dtype(True, device), tower_dtype(False, device)) == (tower, F32)
    assert [language_dtype(p, device) for p in ("float32", "float16", "bfloat16")] == [F32, F16, half]
    assert language_dtype("4bit", device) == half


def test_autocast_only_where_training_has_it(machine):
    machine(True)
    with half_precision("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == BF16
        with full_precision("cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == F32
    machine(False)
    with half_precision("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == F32


@pytest.mark.parametrize(
    ("wanted", "gpus", "line"),
    [
        ("cuda", 0, "no CUDA GPU is seen"),
        ("cuda:3", 2, "there are 2 GPUs"),
        ("mps", 0, "no Apple GPU"),
        ("gpu", 0, "cannot be used"),
        ("meta:x", 0, "cannot be used"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(machine, monkeypatch, wanted, gpus, line):
    machine(False, gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(EvcapError, match=line) as caught:
        pick_device(wanted)
    assert "\n" not in str(caught.value)


def test_the_cpu_where_there_is_no_gpu(machine):
    machine(False)
    assert pick_device() == pick_device("cpu") == torch.device("cpu")


def test_cores_are_those_that_this_process_may_use(tmp_path, monkeypatch):
    """By its affinity, and by the least quota of its control groups, rounded up."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    groups, mine = tmp_path / "cgroup", tmp_path / "self"
    (groups / "a" / "b").mkdir(parents=True)
    assert available_cores(groups, mine) == 8
    mine.write_text("1:cpu:/other\n0::/a/b\n")
    for quota, cores in (("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("9000000 100000", 8), ("torn", 8)):
        (groups / "a" / "cpu.max").write_text(quota + "\n")
        assert available_cores(groups, mine) == cores
    (groups / "a" / "b" / "cpu.max").write_text("300000 100000\n")
    assert available_cores(groups, mine) == 3
    (groups / "cpu.max").write_text("100000 100000\n")
    assert available_cores(groups, mine) == 1


@pytest.fixture
def threads(monkeypatch):
    """Calls of torch.set_num_threads, of a PyTorch that would take 6."""
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr("evcap.runtime.available_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    return calls


def test_threads(threads, monkeypatch):
    use_threads()
    assert threads == [4] and os.environ["OMP_NUM_THREADS"] == "4"
    use_threads()
    use_threads(2)
    assert threads == [4, 2], "what is set already holds unless a number is given"
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr("evcap.runtime.available_cores", lambda: 64)
    use_threads()
    assert threads == [4, 2, 6]
