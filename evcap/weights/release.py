"""Files of the public EVCap release: its checkpoints (000.pt) and its memory, a pickle, read without executing anything.

A checkpoint of the release holds the four tensors it trained. Its name fusion is missing: the release draws it at random from
seed 42 and freezes it, so whoever wants to use such a checkpoint saves the drawn tensors once, in the release's own
environment (data/export_release_fusion.py), and gives both files.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from evcap.errors import EvcapError
from evcap.files import read_regular
from evcap.text_files import one_line
from evcap.weights.blip2 import (
    LAVIS,
    Layout,
    Placed,
    bert_layers,
    bert_text_branch,
    check_shapes,
    gather,
    reason_to_leave_out,
    renamed,
)
from evcap.weights.checkpoints import check_depth, load_plain

LARGEST = 2**32  # bytes of a memory; the release's has 20 MB

RELEASE: Layout = {
    **LAVIS,
    "query_tokens_txt": "fusion.qformer.queries",
    "Qformer_txt.bert.embeddings.LayerNorm.": "fusion.embeddings.norm.",
    "Qformer_txt.bert.embeddings.word_embeddings.": "fusion.embeddings.word.",
    "Qformer_txt.bert.embeddings.position_embeddings.": "fusion.embeddings.position.",
    **bert_layers("Qformer_txt.bert.encoder.layer", "fusion.qformer.layers"),
    **bert_text_branch("Qformer_txt.bert.encoder.layer", "fusion.qformer.layers"),
    "llama_proj.": "projection.",
}


def read_release(sources: Sequence[str | Path], wanted: Mapping[str, torch.Tensor]) -> Placed:
    """The release's tensors for the names of `wanted` (values give the shapes), as `gather` takes them from its files.

    Raises EvcapError for a file that cannot be read, and for the first tensor that is missing or of another shape.
    """
    found = gather(sources, wanted, lambda name: renamed(name, RELEASE), _reason)
    lacking = [name for name in wanted if name not in found.tensors]
    if lacking and all(name.startswith("fusion.") for name in lacking):
        raise EvcapError(
            f"{', '.join(map(str, sources))}: the name fusion is missing ('{lacking[0]}' and {len(lacking) - 1} more); the "
            "release never saves it: get it with data/export_release_fusion.py and name that file too"
        )
    check_shapes(found.tensors, wanted, found.origin, ", ".join(map(str, sources)))
    return found


def _reason(name: str) -> str:
    """Why a tensor of the release is left out."""
    ours = renamed(name, RELEASE)
    if ours and "text_feed_forward" in ours:
        return "text feed-forward of the last layer, which nobody reads"
    return "not asked for" if ours else reason_to_leave_out(name)


def read_release_memory(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """The release's memory file -> keys (M,D) float32 as they lie there, not normalised, and M names.

    Raises EvcapError with one line for a file that is missing, damaged, or holds anything but a tensor and names.
    """
    path = Path(path)
    try:
        content = read_regular(path, LARGEST)
        check_depth(io.BytesIO(content))
        loaded = load_plain(path) if zipfile.is_zipfile(path) else _TensorUnpickler(content).load()
    except OSError as error:
        raise EvcapError(f"cannot read {path}: {error.strerror}") from None
    except _RefusedError as error:
        raise EvcapError(f"{path} is refused: it asks to run {error}; a memory is a tensor and names") from None
    except EvcapError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        reason = one_line(error)[:80] or type(error).__name__
        raise EvcapError(f"{path} is damaged or no pickle ({reason}); get a fresh copy") from None
    return _checked_memory(loaded, path)


def _checked_memory(loaded, path: Path) -> tuple[np.ndarray, list[str]]:
    keys, names = loaded if isinstance(loaded, (tuple, list)) and len(loaded) == 2 else (None, None)
    if isinstance(keys, (torch.Tensor, np.ndarray)) and keys.nbytes > path.stat().st_size:
        raise EvcapError(f"{path}: its keys are larger than the file; get a fresh copy")
    if isinstance(keys, torch.Tensor) and keys.layout == torch.strided:
        keys = keys.detach().float().numpy()
    fits = isinstance(keys, np.ndarray) and keys.ndim == 2 and np.issubdtype(keys.dtype, np.floating)
    if not fits or not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise EvcapError(f"{path} is no memory of the EVCap release: a pair of keys (M,D) and M names is expected")
    if len(keys) != len(names):
        raise EvcapError(f"{path} holds {len(keys)} keys and {len(names)} names; get a fresh copy")
    return keys.astype(np.float32), list(names)


class _RefusedError(Exception):
    """Something that a pickle asked for and that is neither a tensor nor an array."""


def _storage(content: bytes):
    """In place of torch.storage._load_from_bytes, which would open the inner pickle without any restriction."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _RefusedError("code inside a tensor's storage") from None


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors, arrays and plain containers; whatever else a pickle asks for is refused before it is looked up."""

    ALLOWED = {
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch.storage", "_load_from_bytes"): _storage,
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    }

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return self.ALLOWED[module, name]
