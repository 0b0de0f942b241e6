"""Where bfloat16 pays: on devices that compute in it. Others imitate it, many times slower than they compute in float32."""

from __future__ import annotations

import torch


def computes_bfloat16(device: torch.device | str) -> bool:
    """Whether a device has instructions for bfloat16: of CPUs those with AVX-512 BF16, every other device is taken to."""
    # private, but PyTorch's own name for it since 2.6 at least
    return torch.device(device).type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def bfloat16_where_fast(device: torch.device | str, enabled: bool = True) -> torch.autocast:
    """Autocast to bfloat16, if `enabled`, where the device has instructions for it; elsewhere nothing changes."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled and computes_bfloat16(kind))
