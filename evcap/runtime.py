"""What runs where, and in which precision: the one place that decides.

Features, which memories and indexes are made of, are alike for everybody who asks: the image tower runs in `tower_dtype`,
everything behind it up to the query features in float32, and neither under autocast (`full_precision`). Half precision is
for the frozen language model and for training.
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from pathlib import Path

import torch

from evcap.errors import EvcapError

NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZED = ("8bit", "4bit")  # by bitsandbytes


def pick_device(wanted: str | None = None) -> torch.device:
    """The named device ("cpu", "cuda", "cuda:1", "mps", ...); without a name a CUDA GPU where there is one, else the CPU.

    Raises EvcapError for a name that is none, and for a device that this machine or this PyTorch does not have.
    """
    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EvcapError(f"device '{wanted}': no CUDA GPU is seen by this PyTorch ({torch.__version__}); use cpu")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise EvcapError(f"device '{wanted}': there are {torch.cuda.device_count()} GPUs, counted from cuda:0")
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise EvcapError(f"device '{wanted}': this is no Apple GPU that PyTorch can use; use cpu")
        torch.empty(0, device=device)
    except EvcapError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise EvcapError(f"device '{wanted}' cannot be used ({reason}); use cpu, cuda or cuda:1") from None
    return device


def computes_bfloat16(device: torch.device | str) -> bool:
    """Whether a device has instructions for bfloat16. Others imitate it, many times slower than they compute in float32.

    Of CPUs those with AVX-512 BF16, of NVIDIA GPUs those from Ampere on (not V100 and T4). Apple's GPUs are not asked for it.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()  # private, but PyTorch's own name for it since 2.6 at least
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu"


def half_dtype(device: torch.device | str) -> torch.dtype:
    """The type of half size that a device computes in: bfloat16 where it has that, else float16, on CPUs float32."""
    if computes_bfloat16(device):
        return torch.bfloat16
    return torch.float32 if torch.device(device).type == "cpu" else torch.float16


def tower_dtype(half_tower: bool, device: torch.device | str) -> torch.dtype:
    """Of the frozen image tower's weights: float32, but float16 for a `half_tower` (ViT-g, as LAVIS keeps it) off the CPU."""
    return torch.float16 if half_tower and torch.device(device).type != "cpu" else torch.float32


def language_dtype(precision: str, device: torch.device | str, encoder_decoder: bool = False) -> torch.dtype:
    """The type that a frozen language model of a preset's `precision` (NUMBERS or QUANTIZED) computes in on a device.

    bfloat16 becomes the half that the device has. encoder_decoder: float16, in which T5 overflows, becomes float32.
    Raises EvcapError for a precision that is not known.
    """
    if precision not in (*NUMBERS, *QUANTIZED):
        raise EvcapError(f"unknown precision '{precision}', known: {', '.join([*NUMBERS, *QUANTIZED])}")
    wanted = NUMBERS.get(precision, torch.bfloat16)
    dtype = half_dtype(device) if wanted == torch.bfloat16 and not computes_bfloat16(device) else wanted
    return torch.float32 if encoder_decoder and dtype == torch.float16 else dtype


def training_precision(device: torch.device | str) -> str:
    """accelerate's `mixed_precision` for training on a device: "bf16", "fp16" (its gradients scaled), or "no"."""
    if computes_bfloat16(device):
        return "bf16"
    return "fp16" if torch.device(device).type == "cuda" else "no"


def half_precision(device: torch.device | str):
    """Autocast to the half that a device computes in, as training has it; nothing where that is none."""
    dtype = half_dtype(device) if training_precision(device) != "no" else torch.float32
    return nullcontext() if dtype == torch.float32 else torch.autocast(torch.device(device).type, dtype=dtype)


def full_precision(device: torch.device | str) -> torch.autocast:
    """No autocast meanwhile, whatever is around."""
    return torch.autocast(torch.device(device).type, enabled=False)


def without_float16(device: torch.device | str):
    """No autocast to float16 meanwhile; one to bfloat16 stays."""
    kind = torch.device(device).type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return full_precision(device) if half else nullcontext()


def processes():
    """accelerate's PartialState: this process among those that `accelerate launch` or torchrun started, and its device."""
    from datetime import timedelta

    from accelerate import PartialState

    # without `cpu` each of several processes takes itself for the only one where there is no GPU (accelerate 1.15); whoever
    # is first with its share waits for the last, however long
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def available_cores(groups: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: by its affinity, and by the CPU quota of its control groups, rounded up.

    groups: where version 2 of Linux's control groups is mounted. mine: the file that tells in which one this process is.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        told = [line.split(":", 2) for line in mine.read_text().splitlines()]
        inside = next(path for number, names, path in told if number == "0" and not names).strip("/")
    except (OSError, ValueError, StopIteration):
        inside = ""
    folder = groups / inside
    for group in (folder, *folder.parents):
        if group.is_relative_to(groups):
            cores = min(cores, _quota(group / "cpu.max"))
    return max(cores, 1)


def _quota(file: Path) -> float:
    """Cores that a control group may use, rounded up; infinity without a limit."""
    try:
        quota, period = file.read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return math.inf


def use_threads(threads: int | None = None) -> None:
    """So many threads for a model on CPUs, also for libraries that are imported later.

    None: as many as PyTorch would take, but not more than `available_cores`; what OMP_NUM_THREADS says holds.
    """
    if threads is None and os.environ.get("OMP_NUM_THREADS"):
        return
    threads = threads or min(torch.get_num_threads(), available_cores())
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def use_all_cores(device: torch.device, processes: int) -> None:
    """On CPUs `accelerate launch` leaves each process a single thread (it sets OMP_NUM_THREADS=1): take a fair share."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        torch.set_num_threads(max(1, available_cores() // processes))
