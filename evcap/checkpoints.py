"""Tensors out of other people's checkpoints: safetensors, PyTorch files, folders of shards, hub names. Nothing is executed."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from evcap.errors import EvcapError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
NESTED = ("model", "state_dict")  # LAVIS and the EVCap release keep their tensors under "model"

Wanted = Callable[[str], bool]


def read_tensors(source: str | Path, wanted: Wanted) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a checkpoint whose names are `wanted`, on the CPU, and the names of all the others.

    source: a safetensors file; a PyTorch file (its tensors may lie under "model" and be called "module.NAME"); a folder of
    transformers, or its hub name: of several shards only those that hold a wanted tensor are opened (or downloaded).
    Raises EvcapError with one line for a source that is missing, damaged, or holds anything but plain data.
    """
    path = Path(source)
    if path.is_file():
        return _read_file(path, wanted)
    find = partial(_in_folder, path) if path.is_dir() else partial(_on_hub, str(source))
    for name in INDEXES:
        if index := find(name):
            return _read_shards(index, find, wanted)
    for name in WHOLE:
        if file := find(name):
            return _read_file(file, wanted)
    raise EvcapError(f"{source} holds no checkpoint ({' or '.join(WHOLE)}, whole or with its .index.json)")


def _in_folder(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def _on_hub(repository: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
    from requests.exceptions import RequestException

    try:
        return Path(hf_hub_download(repository, name))
    except HFValidationError:
        raise EvcapError(f"{repository} does not exist") from None
    except (LocalEntryNotFoundError, RequestException, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise EvcapError(f"{repository} is no file or folder here, and the hub did not give it; check the path") from None


def _read_shards(index: Path, find: Callable[[str], Path | None], wanted: Wanted) -> tuple[dict[str, torch.Tensor], list[str]]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        shards = {shard: None for name, shard in places.items() if wanted(name)}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise EvcapError(f"{index} is damaged; get a fresh copy") from None
    found: dict[str, torch.Tensor] = {}
    for shard in shards:
        file = find(shard)
        if file is None:
            raise EvcapError(f"{index.parent} lacks {shard}, which {index.name} names; get the file")
        found |= _read_file(file, wanted)[0]
    return found, [name for name in places if name not in found]


def _read_file(path: Path, wanted: Wanted) -> tuple[dict[str, torch.Tensor], list[str]]:
    if path.suffix == ".safetensors":
        from evcap.weights import open_safetensors

        with open_safetensors(path) as file:
            names = list(file.keys())
            return {n: file.get_tensor(n) for n in names if wanted(n)}, [n for n in names if not wanted(n)]
    state = _plain_names(load_plain(path), path)
    return {n: t for n, t in state.items() if wanted(n)}, [n for n in state if not wanted(n)]


def load_plain(path: Path):
    """What a PyTorch file holds, tensors mapped where its format allows. Raises EvcapError for anything but plain data."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        if "eights_only" in str(error) or "Unsupported" in str(error):
            raise EvcapError(f"{path} is refused: beside tensors it names code that opening it would run") from None
        raise EvcapError(f"{path} is damaged or no PyTorch file; get a fresh copy") from None
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:80]
        raise EvcapError(f"{path} is damaged or no PyTorch file ({reason}); get a fresh copy") from None


def _plain_names(state, path: Path) -> dict[str, torch.Tensor]:
    """The dictionary of tensors inside a loaded checkpoint, without the "module." of distributed training."""
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {n: t for n, t in state.items() if isinstance(t, torch.Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise EvcapError(f"{path} holds no named tensors; a checkpoint is expected")
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}
