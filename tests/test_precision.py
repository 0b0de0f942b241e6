"""bfloat16 is used where the CPU computes in it, and nowhere else."""

from pathlib import Path

import pytest
import torch

from evcap.precision import bfloat16_where_fast, computes_bfloat16

FLAGS = Path("/proc/cpuinfo")


@pytest.mark.skipif(not FLAGS.exists(), reason="only Linux tells the instructions of its CPU here")
def test_cpus_tell_whether_they_have_it():
    assert computes_bfloat16("cpu") == ("avx512_bf16" in FLAGS.read_text())


@pytest.mark.parametrize(("native", "enabled", "expected"), [(1, 1, "bfloat16"), (0, 1, "float32"), (1, 0, "float32")])
def test_products_are_in_bfloat16_where_that_is_fast(monkeypatch, native, enabled, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(native))
    with bfloat16_where_fast(torch.device("cpu"), enabled=bool(enabled)):
        assert str((torch.ones(2, 2) @ torch.ones(2, 2)).dtype) == f"torch.{expected}"
