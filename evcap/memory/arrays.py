"""Arrays as memories take and keep them."""

from __future__ import annotations

import numpy as np

from evcap.errors import EvcapError
from evcap.memory.index import CHUNK

ROUNDING = 5e-4  # of the length of a unit vector, by its float16 numbers


def as_array(values) -> np.ndarray:
    """The array of an array or of a tensor on any device; bfloat16, which numpy lacks, becomes float32."""
    if hasattr(values, "detach"):  # told by its manner: importing torch would cost a second
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    return np.asarray(values)


def unit_keys(keys) -> np.ndarray:
    """Keys (M,D) of unit length, float16 where they are, else float32. Raises EvcapError for others, and for zero or NaN."""
    keys = as_array(keys)
    if keys.ndim != 2 or not np.issubdtype(keys.dtype, np.floating):
        raise EvcapError(f"keys must be a floating array (M,D), got {keys.dtype} {keys.shape}")
    unit = np.empty(keys.shape, keys.dtype if keys.dtype in (np.float16, np.float32) else np.float32)
    for start in range(0, len(keys), CHUNK):
        wide = keys[start : start + CHUNK].astype(np.float32)
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        if not np.isfinite(length).all() or (length == 0).any():
            raise EvcapError("a key is zero or not finite; such an image cannot be found again")
        length[np.abs(length - 1) < ROUNDING] = 1  # of another memory: each division would round it anew
        unit[start : start + CHUNK] = wide / length
    return unit
