"""Tensors out of other people's checkpoints: safetensors, PyTorch files, folders of shards, hub names. Nothing is executed."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

import torch

from evcap.errors import EvcapError
from evcap.text_files import brief, one_line, read_json
from evcap.weights.sources import local_or_hub

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
SHARD = re.compile(r"[\w-][\w.-]*")  # a file beside the index, not elsewhere
LARGEST_INDEX, LARGEST_DIRECTORY, LARGEST_PICKLE = 2**26, 2**22, 2**26  # bytes; a zip's entries of 60,000 tensors
MOST_TUPLES = 100_000  # four a tensor
NESTED = ("model", "state_dict")  # LAVIS and the EVCap release keep their tensors under "model"

Wanted = Callable[[str], bool]


def read_tensors(source: str | Path, wanted: Wanted) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a checkpoint whose names are `wanted`, on the CPU, and the names of all the others.

    source: a safetensors file; a PyTorch file (its tensors may lie under "model" and be called "module.NAME"); a folder of
    transformers, or its hub name: of several shards only those that hold a wanted tensor are opened (or downloaded).
    Raises EvcapError with one line for a source that is missing, damaged, or holds anything but plain data.
    """
    place = local_or_hub(source)
    if isinstance(place, Path) and not place.is_dir():
        return _read_file(place, wanted)
    find = partial(_in_folder, place) if isinstance(place, Path) else partial(_on_hub, place)
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
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # of whatever library the hub's client speaks HTTP with
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise EvcapError(f"{repository} is no file or folder here, and the hub did not give it; check the path") from None


def _read_shards(index: Path, find: Callable[[str], Path | None], wanted: Wanted) -> tuple[dict[str, torch.Tensor], list[str]]:
    try:
        places = read_json(index, LARGEST_INDEX)["weight_map"]
        shards = {shard: None for name, shard in places.items() if wanted(name)}
        if not all(SHARD.fullmatch(shard) for shard in shards):
            raise ValueError
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
        from evcap.weights.wheels import open_safetensors

        with open_safetensors(path) as file:
            names = list(file.keys())
            return {n: file.get_tensor(n) for n in names if wanted(n)}, [n for n in names if not wanted(n)]
    state = _plain_names(load_plain(path), path)
    found = {n: t for n, t in state.items() if wanted(n)}
    if odd := [name for name, tensor in found.items() if not is_whole(tensor)]:
        raise EvcapError(f"{path}: tensor {brief(odd[0])} is larger than what the file holds of it; get a fresh copy")
    return found, [n for n in state if not wanted(n)]


def load_plain(path: Path):
    """What a PyTorch file holds, tensors mapped where its format allows. Raises EvcapError for anything but plain data."""
    if not path.is_file():
        raise EvcapError(f"cannot read {path}: {'not a regular file' if path.exists() else 'No such file or directory'}")
    try:
        _check_zip(path)
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                check_depth(file, 5)  # mark, version, system, data, storages
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        if "eights_only" in str(error) or "Unsupported" in str(error):
            raise EvcapError(f"{path} is refused: beside tensors it names code that opening it would run") from None
        raise EvcapError(f"{path} is damaged or no PyTorch file; get a fresh copy") from None
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise EvcapError(f"{path} is damaged or no PyTorch file ({one_line(error)[:80]}); get a fresh copy") from None


def check_depth(stream: IO[bytes], pickles: int = 1) -> None:
    """Raises ValueError for pickles that hold so many tuples that, one in another, they would overflow the stack as a key."""
    tuples = 0
    with suppress(StopIteration):
        for _ in range(pickles):
            opcodes = pickletools.genops(stream)
            while name := _next(opcodes):
                tuples += name.startswith("TUPLE")
                if tuples > MOST_TUPLES:
                    raise ValueError("it is too deep")


def _next(opcodes: Iterator) -> str | None:
    """The name of the next opcode, None behind the last. Raises StopIteration for what is no pickle: its reader says more."""
    try:
        found = next(opcodes, None)
    except Exception:
        raise StopIteration from None
    return found and found[0].name


class _Directory(io.FileIO):
    """A zip file whose list of entries is read only if it is of a size that tensors need."""

    def read(self, size: int = -1) -> bytes:
        size = size if size >= 0 else os.fstat(self.fileno()).st_size - self.tell()
        if size > LARGEST_DIRECTORY:
            raise ValueError("too many entries")
        return super().read(size)


def _check_zip(path: Path) -> None:
    """Raises ValueError for a zip that torch would not write: it compresses nothing, so that nothing grows when it is read."""
    if zipfile.is_zipfile(path):
        try:
            with _Directory(path) as file, zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                pickled = [e for e in entries if e.filename.endswith(".pkl")]
        except zipfile.BadZipFile as error:
            raise ValueError(error) from None
        size = path.stat().st_size
        if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
            raise ValueError("its entries are compressed")
        if sum(e.file_size for e in entries) > size:
            raise ValueError("its entries are longer than the file")
        if any(e.file_size > LARGEST_PICKLE for e in pickled):
            raise ValueError("its list of tensors is too long")
        with zipfile.ZipFile(path) as archive:
            for entry in pickled:
                check_depth(io.BytesIO(archive.read(entry)))


def is_whole(tensor: torch.Tensor) -> bool:
    """Whether all its numbers are there; a row that is said to repeat 10^12 times would become as many when it is converted."""
    dense = tensor.layout == torch.strided
    return dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _plain_names(state, path: Path) -> dict[str, torch.Tensor]:
    """The dictionary of tensors inside a loaded checkpoint, without the "module." of distributed training."""
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {n: t for n, t in state.items() if isinstance(t, torch.Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise EvcapError(f"{path} holds no named tensors; a checkpoint is expected")
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}
